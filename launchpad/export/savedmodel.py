"""SavedModels: written with named signatures, and read the way the server reads them, through a Session.

Keras models go through `ExportArchive`, whose variables a Session can restore; `tf.saved_model.save` of a module
that wraps a Keras 3 model gives a SavedModel that loads in Python and fails in TensorFlow Serving.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from launchpad.errors import DeclarationError
from launchpad.examples import Values
from launchpad.export import preprocessing
from launchpad.spec import Input, Model, Signature


@dataclass(frozen=True)
class TensorInfo:
    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    """With the batch dimension, None for a free one; None as a whole for an unknown rank."""


@dataclass(frozen=True)
class SignatureInfo:
    """A signature as the SavedModel declares it: {key: tensor}."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


def write(model: keras.Model, declared: Model, path: Path) -> None:
    """Write a Keras model with its declared signatures as a SavedModel folder.

    Raises ValueError if a signature does not lead to what the model takes.
    """
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, signature in declared.signatures.items():
        archive.add_endpoint(name, *_endpoint(model, declared, name, signature))
    archive.write_out(str(path), verbose=False)


def input_of(model: keras.Model, declared: Model, signature: Signature) -> Input:
    """Return what a signature takes: as declared, or as it follows from its steps or from the model."""
    own = model.inputs[0]
    given = signature.input or Input()
    name = given.name or own.name
    steps = (*signature.steps, *declared.preprocessing)
    if preprocessing.takes_strings(steps):
        if signature.input is not None and given.dtype != "string":
            raise ValueError(f"the step {steps[0].name} takes strings, the declared input is {given.dtype}")
        return Input(dtype="string", shape=(), name=name)
    if signature.input is not None:
        return given.model_copy(update={"name": name})
    if None in own.shape[1:]:
        raise ValueError(f"the model takes {own.shape[1:]}: declare the signature's input with the shape that is sent")
    return Input(dtype=own.dtype, shape=tuple(own.shape[1:]), name=name)


def _endpoint(model: keras.Model, declared: Model, name: str, signature: Signature) -> tuple:
    """Return (function, input signature) of an endpoint: the steps, the model, its outputs by name."""
    if len(model.inputs) != 1:
        raise ValueError(
            f"the model has {len(model.inputs)} inputs, signatures are made for models with one; export it with "
            "model.export() and name the SavedModel as the source"
        )
    taken = input_of(model, declared, signature)
    steps = (*signature.steps, *declared.preprocessing)

    def serve(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        ready = tf.cast(preprocessing.apply(steps, batch), model.inputs[0].dtype)
        if not ready.shape[1:].is_compatible_with(model.inputs[0].shape[1:]):
            raise ValueError(
                f"the steps of {name} give {tuple(ready.shape[1:])}, the model takes {model.inputs[0].shape[1:]}"
            )
        return named_outputs(model, model(ready, training=False))

    return serve, [tf.TensorSpec((None, *taken.shape), taken.dtype, taken.name)]


def named_outputs(model: keras.Model, outputs: Any) -> dict[str, Any]:
    """Return what a call of the model gave as {output name: tensor}; names are those of the output layers."""
    if isinstance(outputs, dict):
        return outputs
    tensors = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    names = getattr(model, "output_names", None) or [model.layers[-1].name]
    return dict(zip(names, tensors, strict=True))


class Served:
    """A SavedModel loaded the way the server loads it: restored into a Session."""

    def __init__(self, path: Path, where: str = "") -> None:
        """Raises DeclarationError, at `where`, if the folder is not a SavedModel that a Session can restore."""
        self._where = where
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            with self._session.graph.as_default():
                meta = tf.compat.v1.saved_model.load(self._session, ["serve"], str(path))
        except Exception as error:
            self._session.close()
            reason = _reason(error).replace(str(path), "its folder")
            raise DeclarationError(f"source: a server could not load it: {reason}", where, HOW_TO_WRITE) from error
        self._definitions = {
            name: definition for name, definition in meta.signature_def.items() if not name.startswith("__saved_model")
        }

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    @property
    def signatures(self) -> dict[str, SignatureInfo]:
        return {
            name: SignatureInfo(_infos(definition.inputs), _infos(definition.outputs))
            for name, definition in self._definitions.items()
        }

    def run(self, signature: str, inputs: Mapping[str, Values]) -> dict[str, np.ndarray]:
        """Run a signature on a batch: {input key: array or byte strings} to {output key: array}.

        Raises DeclarationError if it fails, as where its variables are not among those that a Session restores.
        """
        definition = self._definitions[signature]
        feeds = {definition.inputs[key].name: values for key, values in inputs.items()}
        try:
            return self._session.run({key: info.name for key, info in definition.outputs.items()}, feeds)
        except tf.errors.OpError as error:
            message = f"source: a server could not run its signature {signature}: {_reason(error)}"
            raise DeclarationError(message, self._where, HOW_TO_WRITE) from error


HOW_TO_WRITE = "write it with model.export() or keras.export.ExportArchive"


def _reason(error: Exception) -> str:
    """Return the first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and line != "Graph execution error:"), type(error).__name__)


def _infos(tensors: Mapping) -> dict[str, TensorInfo]:
    return {
        key: TensorInfo(
            info.name,
            tf.dtypes.as_dtype(info.dtype).name,
            None
            if info.tensor_shape.unknown_rank
            else tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim),
        )
        for key, info in sorted(tensors.items())
    }
