"""A model exported otherwise answers as it did, read the way the server reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from launchpad.tune import variants


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel with a variable, two named inputs in one signature and text in another."""
    module = tf.Module()
    module.weight = tf.Variable([[2.0], [3.0]])

    @tf.function(input_signature=[tf.TensorSpec([None, 2], name="x"), tf.TensorSpec([None, 1], name="offset")])
    def numbers(x, offset):
        return {"sum": tf.matmul(x, module.weight) + offset, "twice": 2 * offset}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def text(text):
        return {"sum": tf.matmul(tf.reshape(tf.io.decode_raw(text, tf.float32), [-1, 2]), module.weight)}

    path = tmp_path_factory.mktemp("saved") / "1"
    tf.saved_model.save(module, str(path), {"serving_default": numbers, "text": text})
    return path


def answers(path: Path) -> dict[str, np.ndarray]:
    """What each signature says through a Session, as the server runs it."""
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
        given = {
            "serving_default": {"x": np.array([[1.0, 1.0], [0.0, 1.0]]), "offset": np.array([[10.0], [20.0]])},
            "text": {"text": [np.array([1.0, 2.0], np.float32).tobytes()]},
        }
        found = {}
        for name, values in given.items():
            signature = meta.signature_def[name]
            fed = {signature.inputs[key].name: value for key, value in values.items()}
            for key, output in signature.outputs.items():
                found[f"{name} {key}"] = session.run(output.name, fed)
        return found


@pytest.mark.parametrize("kind", [variants.FROZEN, variants.XLA])
def test_a_variant_answers_every_signature_as_the_model_does(saved, tmp_path, kind):
    variants.write(saved, tmp_path / "1", kind)

    wanted, given = answers(saved), answers(tmp_path / "1")

    assert given.keys() == wanted.keys() == {"serving_default sum", "serving_default twice", "text sum"}
    for name, values in wanted.items():
        np.testing.assert_allclose(given[name], values, atol=1e-6)


def test_a_frozen_model_has_no_variables(saved, tmp_path):
    variants.write(saved, tmp_path / "1", variants.FROZEN)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "1"))
        kinds = {operation.type for operation in session.graph.get_operations()}
    assert not kinds & {"VarHandleOp", "VariableV2"}
