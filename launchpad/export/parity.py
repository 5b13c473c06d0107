"""The parity gate: a model, its SavedModel in a Session and each of its signatures give the same answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from launchpad.errors import DeclarationError
from launchpad.examples import Examples, Values
from launchpad.export import preprocessing
from launchpad.export.data import Dataset
from launchpad.export.savedmodel import Served, SignatureInfo, input_of, named_outputs
from launchpad.spec import Model

BATCH = 100
"""Examples sent through a signature at once."""


@dataclass(frozen=True)
class Raw:
    """Examples before any encoding: [n, ...] in the data's own shape, labels [n] or None, and where they are from."""

    values: np.ndarray
    labels: np.ndarray | None
    origin: str


def answers(model: keras.Model, declared: Model, raw: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the Keras model itself says of raw examples [n, ...]: {output name: [n, ...]}.

    Raw examples become the model's input by the resizing and reshaping of the first signature; the others must agree.
    """
    first = next(iter(declared.signatures.values()))
    ready = preprocessing.reference([*first.steps, *declared.preprocessing], raw)
    taken = model.inputs[0].shape[1:]
    if None not in taken:
        ready = ready.reshape(-1, *taken)
    return named_outputs(model, model.predict(ready, batch_size=BATCH, verbose=0))


def raw_examples(dataset: Dataset | None, model: keras.Model, declared: Model) -> Raw:
    """Return the held-out examples; where no data is declared, seeded noise in the shape that the model takes.

    The noise is normal; whole numbers 0..255 where a signature carries integers, which would not keep fractions.
    """
    if dataset is not None:
        return Raw(dataset.x_test, dataset.y_test, "held-out data")
    first = next(iter(declared.signatures.values()))
    taken = input_of(model, declared, first)
    shape = [size or 1 for size in (taken.shape if taken.dtype != "string" else model.inputs[0].shape[1:])]
    chance, size = np.random.default_rng(declared.seed), (declared.acceptance.parity_examples, *shape)
    noise = chance.integers(0, 256, size) if _carries_integers(declared) else chance.normal(size=size)
    return Raw(noise.astype(np.float32), None, "synthetic")


def _carries_integers(declared: Model) -> bool:
    """Tell whether some signature takes its examples as integers, such as the pixels of an image."""
    chains = [
        (signature.input, (*signature.steps, *declared.preprocessing)) for signature in declared.signatures.values()
    ]
    return any(
        step.name == "decode_image" or "int" in getattr(step.settings, "dtype", "")
        for _, steps in chains
        for step in steps
    ) or any("int" in taken.dtype for taken, _ in chains if taken)


def encoded(model: keras.Model, declared: Model, raw: Raw, answers: dict[str, np.ndarray], rows: slice) -> Examples:
    """Return raw examples, those in `rows`, in the form of each signature, with the model's answers."""
    inputs: dict[str, dict[str, Values]] = {}
    for name, signature in declared.signatures.items():
        taken = input_of(model, declared, signature)
        if taken.dtype == "string":
            steps = (*signature.steps, *declared.preprocessing)
            values: Values = [preprocessing.encode(steps, example) for example in raw.values[rows]]
        else:
            values = raw.values[rows].astype(taken.dtype)
            values = values.reshape(len(values), *taken.shape)
        inputs[name] = {str(taken.name): values}
    expected = {name: values[rows] for name, values in answers.items()}
    labels = raw.labels[rows] if raw.labels is not None else None
    return Examples(inputs, dict.fromkeys(inputs, expected), labels)


def differences(served: Served, examples: Examples) -> dict[str, float]:
    """Return {signature: largest absolute difference to the expected outputs} over all examples."""
    found = {}
    for signature, inputs in examples.inputs.items():
        worst = 0.0
        for start in range(0, len(examples), BATCH):
            rows = slice(start, start + BATCH)
            given = served.run(signature, {name: values[rows] for name, values in inputs.items()})
            for name, values in given.items():
                far = np.max(np.abs(values - examples.outputs[signature][name][rows]), initial=0)
                worst = float(np.maximum(worst, far))  # which keeps a NaN, as `max` would not
        found[signature] = worst
    return found


def of_saved_model(path: str, wanted: Mapping[str, SignatureInfo], raw: Raw | None, count: int, seed: int) -> Examples:
    """Return examples for a SavedModel that has no Keras model behind it: numeric inputs, and the answers that
    TensorFlow's own loader gives.

    Signatures with several inputs or with strings get none: what a client sends is known to their author alone. Inputs
    come from the data where its size fits, else from a seeded normal distribution.
    """
    numeric = {
        name: info.inputs
        for name, info in wanted.items()
        if len(info.inputs) == 1
        and all(tensor.shape for tensor in info.inputs.values())
        and not any(tensor.dtype == "string" for tensor in (*info.inputs.values(), *info.outputs.values()))
    }
    inputs: dict[str, dict[str, Values]] = {}
    for name, tensors in numeric.items():
        key, tensor = next(iter(tensors.items()))
        shape = [size or 1 for size in (tensor.shape or ())[1:]]
        fits = raw is not None and raw.values[0].size == np.prod(shape, dtype=int)
        source = raw.values if raw is not None and fits else np.random.default_rng(seed).normal(size=(count, *shape))
        inputs[name] = {key: source[:count].reshape(-1, *shape).astype(tensor.dtype)}
    loaded = tf.saved_model.load(path)
    outputs = {}
    for name, arrays in inputs.items():
        answer = loaded.signatures[name](**{key: tf.constant(values) for key, values in arrays.items()})
        outputs[name] = {key: value.numpy() for key, value in answer.items()}
    labels = raw.labels[:count] if raw is not None and raw.labels is not None else None
    return Examples(inputs, outputs, labels)


def accuracy(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> float:
    """Return the share of examples whose largest output is their label. Raises DeclarationError if there is none."""
    scores = next((values for values in outputs.values() if values.ndim == 2 and values.shape[1] > 1), None)
    if scores is None:
        raise DeclarationError("acceptance.accuracy needs an output of class scores, [n, classes]")
    return float(np.mean(scores.argmax(1) == labels))
