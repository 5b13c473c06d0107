"""Real requests with the exporter's own answers: written by the export, sent and checked by warmup and load tests.

The file is an `.npz` with names such as `input/SIGNATURE/NAME`, the signature percent-encoded. Inputs of dtype string
are kept as one run of bytes with offsets, so that no pickle is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

TOLERANCE = 1e-3
"""Largest difference between a served value and the exporter's that is still the same answer. Above any rounding by
batch size or instruction set, below what turns one class into another."""


Values = np.ndarray | list[bytes]
"""Examples of one input: an array [n, ...], or n byte strings."""


@dataclass(frozen=True)
class Examples:
    """The same n examples in the form of each signature.

    inputs: {signature: {input name: array [n, ...] or n byte strings}}.
    outputs: {signature: {output name: array [n, ...]}}, what the exporter says that the model answers.
    labels: [n] integers, or None where the data has none.
    """

    inputs: dict[str, dict[str, Values]]
    outputs: dict[str, dict[str, np.ndarray]]
    labels: np.ndarray | None

    def __len__(self) -> int:
        return max((len(values) for inputs in self.inputs.values() for values in inputs.values()), default=0)

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {}
        if self.labels is not None:
            arrays["labels"] = self.labels
        for signature, inputs in self.inputs.items():
            place = quote(signature, safe="")
            for name, values in inputs.items():
                key = f"input/{place}/{name}"
                if isinstance(values, np.ndarray):
                    arrays[key] = values
                else:
                    arrays[key] = np.frombuffer(b"".join(values), np.uint8)
                    arrays[f"ends/{place}/{name}"] = np.cumsum([len(value) for value in values])
            for name, answers in self.outputs[signature].items():
                arrays[f"output/{place}/{name}"] = answers
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Examples:
        inputs: dict[str, dict[str, Values]] = {}
        outputs: dict[str, dict[str, np.ndarray]] = {}
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays:
                kind, _, rest = key.partition("/")
                place, _, name = rest.partition("/")
                signature = unquote(place)
                if kind == "output":
                    outputs.setdefault(signature, {})[name] = arrays[key]
                elif kind == "input":
                    ends = arrays.get(f"ends/{rest}")
                    values = arrays[key] if ends is None else _split(arrays[key].tobytes(), ends)
                    inputs.setdefault(signature, {})[name] = values
            return cls(inputs, outputs, arrays.get("labels"))


def _split(run: bytes, ends: np.ndarray) -> list[bytes]:
    return [run[start:end] for start, end in zip([0, *ends][:-1], ends, strict=True)]


def same_answer(expected: np.ndarray, given: np.ndarray) -> bool:
    """Tell whether a served output [n, ...] is the exporter's, within TOLERANCE."""
    return expected.shape == given.shape and np.allclose(expected, given, rtol=0, atol=TOLERANCE)
