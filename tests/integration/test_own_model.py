"""A model of the user's own, from `init` to a report."""

from __future__ import annotations

import json

import pytest

keras = pytest.importorskip("keras")


@pytest.fixture
def flowers(checkout):
    """A checkout with a `.keras` file and a SavedModel of four features and three classes."""
    model = keras.Sequential([keras.Input((4,), name="features"), keras.layers.Dense(3, activation="softmax")])
    model.save(checkout.root / "flowers.keras")
    model.export(checkout.root / "flowers-saved", verbose=False)
    return checkout


def use_own_ports(checkout):
    ports = ("rest: 8501, grpc: 8500", f"rest: {checkout.rest_port}, grpc: {checkout.grpc_port}")
    checkout.edit(ports, ("backend: auto", "backend: embedded"))


@pytest.mark.parametrize("source", ["flowers.keras", "flowers-saved"])
def test_init_writes_a_declaration_that_deploys(flowers, source):
    flowers.invoke("init", "--source", source, "--name", "flowers", "--force", check=True)
    use_own_ports(flowers)

    flowers.invoke("deploy-local", "--duration", "2", check=True)

    (run,) = flowers.runs()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["totals"]["requests"] > 50 and summary["totals"]["failures"] == 0
    manifest = json.loads((flowers.root / "models/flowers/evidence/1/manifest.json").read_text())
    assert manifest["parity"]["origin"] == "synthetic"


def test_init_does_not_replace_a_declaration_unasked(flowers):
    before = (flowers.root / "pipeline.yaml").read_text()

    done = flowers.invoke("init", "--source", "flowers.keras")

    assert done.returncode == 2 and "--force" in done.stdout
    assert (flowers.root / "pipeline.yaml").read_text() == before


def test_a_function_that_returns_a_model_is_a_source(flowers):
    (flowers.root / "mine.py").write_text(
        "import keras\n\n\ndef build(seed):\n"
        "    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation='softmax')])\n"
    )
    flowers.invoke("init", "--source", "mine.py:build", "--force", check=True)

    flowers.invoke("export", check=True)

    assert (flowers.root / "models/build/versions/1/saved_model.pb").exists()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nowhere_to_be_found\n", "nowhere_to_be_found"),
        ("def build():\n    return 3\n", "not a keras.Model"),
        ("def build(:\n", "mine.py:1"),
        ("def build():\n    return 1 / 0\n", "mine.py:2"),
    ],
)
def test_a_source_that_fails_is_told_with_both_places_and_no_traceback(flowers, code, said):
    (flowers.root / "mine.py").write_text(code)
    flowers.invoke("init", "--source", "mine.py:build", "--force", check=True)

    done = flowers.invoke("export")

    assert done.returncode == 2
    assert said in done.stdout and "pipeline.yaml:" in done.stdout and "Traceback" not in done.stdout


def test_a_signature_that_the_saved_model_lacks_is_told_with_those_it_has(flowers):
    flowers.invoke("init", "--source", "flowers-saved", "--force", check=True)
    flowers.edit(("serving_default: {}", "missing_one: {}"))

    done = flowers.invoke("export")

    assert done.returncode == 2
    assert "missing_one" in done.stdout and "serving_default" in done.stdout
    assert not (flowers.root / "models" / "flowers-saved").joinpath("versions", "1").exists()
