"""The data set of a model: Keras's `mnist.npz` layout, for any data."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from launchpad.errors import DeclarationError

Progress = Callable[[float, float], None]
"""What a model function may be given to tell how far its training is: (done, total)."""


@dataclass(frozen=True)
class Dataset:
    """Arrays of equal length by pair: inputs [n, ...] of any numeric dtype, integer labels [n]."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(path: Path, where: str) -> Dataset:
    """Read an `.npz` with the four arrays. Raises DeclarationError, at `where`, if it is not one."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = [field.name for field in fields(Dataset)]
            missing = [name for name in names if name not in arrays]
            if missing:
                raise DeclarationError(f"data: {path.name} lacks {', '.join(missing)}", where)
            dataset = Dataset(*(arrays[name] for name in names))
    except FileNotFoundError:
        raise DeclarationError(f"data: there is no file {path}", where) from None
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DeclarationError(f"data: {path.name} is not an .npz of plain arrays: {error}", where) from None
    if not len(dataset.x_test) or len(dataset.x_test) != len(dataset.y_test):
        sizes = f"{len(dataset.x_test)} inputs and {len(dataset.y_test)} labels"
        raise DeclarationError(f"data: {path.name} holds out {sizes}", where, "x_test and y_test pair up, one at least")
    return dataset
