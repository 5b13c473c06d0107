"""The export of a tiny model: all its signatures answer alike, or nothing is published."""

from __future__ import annotations

import base64
import dataclasses
import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from launchpad import declaration, files
from launchpad.errors import DeclarationError, GateFailed
from launchpad.examples import Examples
from launchpad.export import data, parity, preprocessing, savedmodel, source
from launchpad.export.stage import Export
from launchpad.layout import Layout
from launchpad.modelserver import protos
from launchpad.stage import Context

SOURCE = """\
import keras


def build(data, seed, progress):
    model = keras.Sequential([keras.Input((4,), name="pixels"), keras.layers.Dense(3, "softmax", name="scores")])
    progress(1, 1)
    return model


def fails():
    return [][0]


def returns_text():
    return "a model"


def asks_for_more(data, gpu):
    return None
"""
DECLARED = """\
name: tiny
models:
  tiny:
    source: model.py:build
    data: data.npz
    seed: 3
    preprocessing:
      - normalize: {mean: 127.5, scale: 127.5}
    signatures:
      serving_default:
        input: {dtype: float32, shape: [4]}
      bytes:
        steps:
          - decode_raw: {dtype: uint8, shape: [4]}
      base64_tensor:
        steps:
          - decode_base64
          - parse_tensor: {dtype: float32, shape: [4]}
      image:
        steps:
          - decode_image: {channels: 1}
          - resize: {height: 2, width: 2}
          - reshape: {shape: [4]}
    acceptance: {parity_examples: 20}
serving:
  batching: {max_batch_size: 3, num_batch_threads: 1}
"""
SIGNATURES = ["base64_tensor", "bytes", "image", "serving_default"]


def write_data(path: Path, count: int = 40) -> None:
    chance = np.random.default_rng(1)
    pixels, labels = chance.integers(0, 256, (count, 2, 2), np.uint8), chance.integers(0, 3, count)
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)


def checkout(root: Path, text: str = DECLARED) -> Context:
    (root / "pipeline.yaml").write_text(text)
    (root / "model.py").write_text(SOURCE)
    write_data(root / "data.npz")
    return Context(declaration.load(root))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Layout:
    """A checkout whose tiny model has been exported. Tests read it and leave it as it is."""
    context = checkout(tmp_path_factory.mktemp("exported"))
    assert Export().run(context).detail == "tiny, tiny warmup requests"
    return context.layout


@pytest.fixture
def saved_model(exported, tmp_path) -> Path:
    """A copy of the exported SavedModel, to be named as somebody's own."""
    shutil.copytree(exported.version("tiny", 1), tmp_path / "mine")
    return tmp_path / "mine"


def refused(context: Context, kind: type[Exception] = DeclarationError) -> str:
    with pytest.raises(kind) as raised:
        Export().run(context)
    assert not context.layout.versions("tiny").exists() or not any(context.layout.versions("tiny").iterdir())
    return str(raised.value)


# --- what an export leaves ------------------------------------------------------------------------------------


def test_all_signatures_give_the_answers_of_the_keras_model(exported):
    manifest = files.read_json(exported.evidence("tiny", 1) / "manifest.json")
    differences = manifest["parity"]["largest_difference"]
    assert sorted(differences) == SIGNATURES
    assert max(differences.values()) <= 1e-5
    assert (manifest["parity"]["examples"], manifest["parity"]["origin"]) == (20, "held-out data")
    assert [gate["passed"] for gate in manifest["gates"]] == [True] * 4 + [None]


def test_the_manifest_lists_signatures_with_types_and_shapes_and_every_file_by_hash(exported):
    manifest = files.read_json(exported.evidence("tiny", 1) / "manifest.json")
    taken = manifest["signatures"]["bytes"]["inputs"]["pixels"]
    given = manifest["signatures"]["bytes"]["outputs"]["scores"]
    assert (taken["dtype"], taken["shape"]) == ("string", [None])
    assert (given["dtype"], given["shape"]) == ("float32", [None, 3])
    assert manifest["signatures"]["serving_default"]["inputs"]["pixels"]["shape"] == [None, 4]
    assert manifest["tensorflow"] == tf.__version__
    version = exported.version("tiny", 1)
    assert manifest["files"] == files.tree(version, leave_out=[version / "assets.extra"])
    assert "saved_model.pb" in manifest["files"]


def test_the_examples_are_answered_by_the_model_as_a_server_loads_it(exported):
    examples = Examples.load(exported.evidence("tiny", 1) / "examples.npz")
    assert sorted(examples.inputs) == SIGNATURES
    assert len(examples) == len(examples.labels) == 20
    pixels = np.frombuffer(examples.inputs["bytes"]["pixels"][7], np.uint8)
    np.testing.assert_array_equal(pixels, examples.inputs["serving_default"]["pixels"][7])
    tensor = tf.io.parse_tensor(base64.urlsafe_b64decode(examples.inputs["base64_tensor"]["pixels"][7]), "float32")
    np.testing.assert_array_equal(pixels, tensor)
    with savedmodel.Served(exported.version("tiny", 1)) as served:
        for signature, inputs in examples.inputs.items():
            answer = served.run(signature, inputs)["scores"]
            np.testing.assert_allclose(answer, examples.outputs[signature]["scores"], atol=1e-5)


def test_warmup_requests_cover_each_signature_and_each_batch_size(exported):
    path = exported.warmup_records("tiny", 1) / "tf_serving_warmup_requests"
    asked = set()
    for record in tf.data.TFRecordDataset(str(path)):
        request = protos.PredictionLog.FromString(record.numpy()).predict_log.request
        asked.add((request.model_spec.signature_name, request.inputs["pixels"].tensor_shape.dim[0].size))
    assert asked == {(signature, size) for signature in SIGNATURES for size in (1, 2, 3)}


def test_nothing_is_due_after_an_export(exported):
    context = Context(declaration.load(exported.root))
    assert [plan.reason for plan in Export().plan(context)] == ["", ""]


# --- gates ----------------------------------------------------------------------------------------------------


def test_a_signature_that_gives_other_answers_fails_parity_and_nothing_is_published(tmp_path):
    twisted = DECLARED.replace("reshape: {shape: [4]}", "reshape: {shape: [4]}\n          - normalize: {scale: 1.01}")
    said = refused(checkout(tmp_path, twisted), GateFailed)
    assert "pipeline.yaml:4: parity of tiny, image is 0.00" in said
    assert "must be at most 1e-05; not exported" in said
    assert "bytes" not in said


def test_a_refused_export_leaves_the_version_before_it_whole(exported, tmp_path):
    shutil.copytree(exported.root, tmp_path, dirs_exist_ok=True)
    before = files.tree(tmp_path / "models")
    text = DECLARED.replace("parity_examples: 20", "parity_examples: 20, accuracy: 1.0")
    context = checkout(tmp_path, text)
    with pytest.raises(GateFailed, match="accuracy of tiny is"):
        Export().run(context)
    assert files.tree(tmp_path / "models") == before
    assert not [path for path in (tmp_path / "models").rglob(".*")]


def test_answers_that_are_no_numbers_fail_parity(exported):
    examples = Examples.load(exported.evidence("tiny", 1) / "examples.npz")
    broken = {name: {"scores": np.where(np.eye(20, 3) > 0, np.nan, 0.3)} for name in examples.outputs}
    with savedmodel.Served(exported.version("tiny", 1)) as served:
        found = parity.differences(served, dataclasses.replace(examples, outputs=broken))
    assert np.isnan(list(found.values())).all()


def test_parity_sees_a_single_wrong_answer_in_any_batch(exported, monkeypatch):
    monkeypatch.setattr(parity, "BATCH", 6)
    examples = Examples.load(exported.evidence("tiny", 1) / "examples.npz")
    wrong = examples.outputs["bytes"]["scores"].copy()
    wrong[19, 1] += 0.25
    changed = dataclasses.replace(examples, outputs=examples.outputs | {"bytes": {"scores": wrong}})
    with savedmodel.Served(exported.version("tiny", 1)) as served:
        found = parity.differences(served, changed)
    assert found["bytes"] == pytest.approx(0.25, abs=1e-5)
    assert found["image"] < 1e-5


def test_accuracy_is_the_share_of_largest_outputs_that_are_the_label():
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert parity.accuracy({"scores": scores}, np.array([1, 0, 0, 0])) == 0.75
    with pytest.raises(DeclarationError, match="class scores"):
        parity.accuracy({"value": scores[:, :1]}, np.array([1, 0, 0, 0]))


# --- sources of other kinds -----------------------------------------------------------------------------------


def other_source(root: Path, model: str) -> Context:
    return checkout(root, f"name: tiny\nmodels:\n  tiny:\n{model}")


def test_a_keras_file_is_exported_with_what_it_takes_and_gives(tmp_path):
    net = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1, name="y")])
    net.save(tmp_path / "net.keras")
    context = other_source(tmp_path, "    source: net.keras\n")
    Export().run(context)
    with savedmodel.Served(context.layout.version("tiny", 1)) as served:
        assert served.signatures["serving_default"].inputs["x"].shape == (None, 2)
        x = np.array([[1.0, 2.0]], np.float32)
        np.testing.assert_allclose(served.run("serving_default", {"x": x})["y"], net(x).numpy(), atol=1e-6)
    manifest = files.read_json(context.layout.evidence("tiny", 1) / "manifest.json")
    assert manifest["parity"]["origin"] == "synthetic"
    assert manifest["gates"][-1]["why"] == "no held-out data declared"


def test_a_saved_model_is_taken_as_it_is(saved_model, tmp_path):
    before = files.tree(saved_model)
    context = other_source(tmp_path, "    source: mine\n    signatures: {serving_default: {}, bytes: {}}\n")
    Export().run(context)
    assert files.tree(saved_model) == before
    version = context.layout.version("tiny", 1)
    assert files.sha256(version / "saved_model.pb") == before["saved_model.pb"]
    manifest = files.read_json(context.layout.evidence("tiny", 1) / "manifest.json")
    assert sorted(manifest["signatures"]) == ["bytes", "serving_default"]
    assert manifest["parity"]["largest_difference"].keys() == {"serving_default"}


def test_a_signature_that_a_saved_model_lacks_is_named_at_its_line_with_those_that_it_has(saved_model, tmp_path):
    text = "    source: mine\n    signatures:\n      serving_default: {}\n      classify: {}\n      regress: {}\n"
    assert refused(other_source(tmp_path, text)) == "\n".join(
        f"pipeline.yaml:{line}: the SavedModel of tiny has no signature '{name}'\n    it has: {', '.join(SIGNATURES)}"
        for line, name in ((7, "classify"), (8, "regress"))
    )


def test_a_saved_model_that_a_session_cannot_restore_is_refused(tmp_path):
    class Wrapped(tf.Module):
        """Keras 3 variables are not tracked here, as a Session would need them to be."""

        def __init__(self) -> None:
            super().__init__()
            self.net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])

        @tf.function(input_signature=[tf.TensorSpec([None, 2])])
        def serve(self, x):
            return {"y": self.net(x)}

    module = Wrapped()
    tf.saved_model.save(module, str(tmp_path / "mine"), signatures={"serving_default": module.serve})
    text = "    source: mine\n    signatures: {serving_default: {}}\n"
    said = refused(other_source(tmp_path, text))
    assert said.startswith(
        "pipeline.yaml:4: source: a server could not run its signature serving_default: Could not find"
    )
    assert said.endswith("write it with model.export() or keras.export.ExportArchive")


def test_a_folder_that_is_no_saved_model_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    said = refused(other_source(tmp_path, "    source: mine\n"))
    assert said.startswith("pipeline.yaml:4: source: a server could not load it: SavedModel file does not exist")
    assert ".new" not in said


@pytest.mark.parametrize(
    "signatures",
    [
        "serving_default: {}, bytes: {steps: [{decode_raw: {shape: [4]}}]}",
        "image: {steps: [decode_image, {resize: {height: 2, width: 2}}, {reshape: {shape: [4]}}]}, serving_default: {}",
        "base64: {steps: [decode_base64, {parse_tensor: {shape: [4]}}]}",
    ],
)
@pytest.mark.parametrize("with_data", [True, False])
def test_parity_holds_whichever_signature_comes_first_with_data_and_without(tmp_path, signatures, with_data):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")]).save(tmp_path / "net.keras")
    steps = "    preprocessing: [{normalize: {mean: 127.5, scale: 127.5}}]\n"
    given = "    data: data.npz\n" if with_data else ""
    context = other_source(tmp_path, f"    source: net.keras\n{given}{steps}    signatures: {{{signatures}}}\n")
    Export().run(context)
    manifest = files.read_json(context.layout.evidence("tiny", 1) / "manifest.json")
    assert max(manifest["parity"]["largest_difference"].values()) <= 1e-5


def test_a_model_of_free_size_needs_a_declared_shape(tmp_path):
    net = keras.Sequential([keras.Input((None, None, 1)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
    net.save(tmp_path / "net.keras")
    assert "the model takes (None, None, 1): declare the signature's input" in refused(
        other_source(tmp_path, "    source: net.keras\n")
    )
    context = other_source(tmp_path, "    source: net.keras\n    signatures: {a: {input: {shape: [3, 5, 1]}}}\n")
    Export().run(context)
    with savedmodel.Served(context.layout.version("tiny", 1)) as served:
        (taken,) = served.signatures["a"].inputs.values()
        assert taken.shape == (None, 3, 5, 1)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("source: absent.py:build", "source: there is no Python file"),
        ("source: absent.keras", "source: there is no file"),
        ("source: absent", "source: there is no SavedModel folder absent"),
        ("source: model.py:absent", "source: model.py has no function 'absent'"),
        ("source: model.py:fails", "source: fails failed: IndexError: list index out of range (model.py:11)"),
        ("source: model.py:returns_text", "source: returns_text returned str, not a keras.Model"),
        ("source: model.py:build", "source: build asks for data"),
        ("source: model.py:asks_for_more", "source: asks_for_more asks for gpu"),
    ],
)
def test_a_source_that_gives_no_model_is_refused_at_its_line(tmp_path, model, said):
    text = refused(other_source(tmp_path, f"    {model}\n"))
    assert text.startswith(f"pipeline.yaml:4: {said}")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "import keras\n\nimport no_such_module\n",
            "ModuleNotFoundError: No module named 'no_such_module' (model.py:3)",
        ),
        ("def build(:\n    pass\n", "SyntaxError: invalid syntax (model.py:1)"),
        ("x = 1\nx / 0\n", "ZeroDivisionError: division by zero (model.py:2)"),
        ("import broken_helper\n", "SyntaxError: '(' was never closed (broken_helper.py:2)"),
    ],
)
def test_a_source_that_does_not_import_is_named_with_file_and_line(tmp_path, code, said):
    context = other_source(tmp_path, "    source: model.py:build\n")
    (tmp_path / "model.py").write_text(code)
    (tmp_path / "broken_helper.py").write_text("x = 1\ny = (\n")
    assert refused(context) == f"pipeline.yaml:4: source: model.py does not import: {said}"


def test_a_source_may_be_written_as_any_module_is(tmp_path):
    (tmp_path / "model.py").write_text(
        "from __future__ import annotations\nimport dataclasses, keras\nfrom beside import UNITS\n\n\n"
        "@dataclasses.dataclass\nclass Shape:\n    units: int\n\n\n"
        "def build():\n    shape = Shape(UNITS)\n"
        "    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(shape.units)])\n"
    )
    (tmp_path / "beside.py").write_text("UNITS = 5\n")
    model = source.from_function(tmp_path, "model.py:build", "", None, 0, lambda done, total: None)
    assert model.output_shape == (None, 5)


def test_the_same_seed_gives_the_same_model(exported):
    def weights(seed: int) -> np.ndarray:
        dataset = data.load(exported.root / "data.npz", "")
        model = source.from_function(exported.root, "model.py:build", "", dataset, seed, lambda done, total: None)
        return model.get_weights()[0]

    np.testing.assert_array_equal(weights(5), weights(5))
    assert not np.array_equal(weights(5), weights(6))


def test_steps_that_do_not_lead_to_what_the_model_takes_are_told_with_both_shapes(tmp_path):
    text = DECLARED.replace("decode_raw: {dtype: uint8, shape: [4]}", "decode_raw: {dtype: uint8, shape: [2, 2]}")
    said = refused(checkout(tmp_path, text))
    assert said.startswith("pipeline.yaml:9: signatures of tiny:")
    assert "the steps of bytes give (2, 2), the model takes (4,)" in said


# --- data -----------------------------------------------------------------------------------------------------


def test_data_that_is_missing_or_is_none_is_refused_at_its_line(tmp_path):
    context = checkout(tmp_path)
    np.savez(tmp_path / "data.npz", x_train=np.zeros(1))
    assert refused(context) == "pipeline.yaml:5: data: data.npz lacks y_train, x_test, y_test"
    (tmp_path / "data.npz").write_text("no archive")
    assert refused(context).startswith("pipeline.yaml:5: data: data.npz is not an .npz of plain arrays")
    (tmp_path / "data.npz").unlink()
    assert refused(context).startswith("pipeline.yaml:5: data: there is no file")


def test_objects_in_the_data_are_never_unpickled(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    np.savez(tmp_path / "data.npz", **dict.fromkeys(("x_train", "y_train", "x_test", "y_test"), np.array([Harm()])))
    with pytest.raises(DeclarationError, match="of plain arrays"):
        data.load(tmp_path / "data.npz", "")
    assert not (tmp_path / "harm").exists()


def test_string_decoders_of_the_spec_and_of_the_graph_are_the_same():
    from launchpad.spec import Step

    assert set(preprocessing.STRING_DECODERS) == {
        name for name in Step.model_fields if name.startswith(("decode", "parse"))
    }
