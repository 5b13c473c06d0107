"""From `source:` to a Keras model: a function in a Python file, or a `.keras` file."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from launchpad.errors import DeclarationError
from launchpad.export.data import Dataset, Progress


def from_function(
    root: Path, source: str, where: str, data: Dataset | None, seed: int, progress: Progress
) -> keras.Model:
    """Call `path/to/module.py:function` and return the model that it builds.

    The function is given those of `data`, `seed` and `progress` that it has parameters for. All random generators
    are seeded before. Raises DeclarationError, with the line of the user's file, for whatever goes wrong in it.
    """
    file, _, name = source.rpartition(":")
    function = _function(root / file, name, where)
    offered = {"data": data, "seed": seed, "progress": progress}
    wanted = inspect.signature(function).parameters
    unknown = [parameter for parameter in wanted if parameter not in offered]
    if unknown:
        raise DeclarationError(
            f"source: {name} asks for {', '.join(unknown)}", where, f"a model function is given: {', '.join(offered)}"
        )
    if "data" in wanted and data is None:
        raise DeclarationError(f"source: {name} asks for data", where, "name an .npz file under `data:`")
    keras.utils.set_random_seed(seed)
    try:
        model = function(**{name: offered[name] for name in wanted})
    except Exception as error:
        raise DeclarationError(f"source: {name} failed: {_in_file(error, root / file)}", where) from error
    if not isinstance(model, keras.Model):
        raise DeclarationError(f"source: {name} returned {type(model).__name__}, not a keras.Model", where)
    return model


def from_keras_file(path: Path, where: str) -> keras.Model:
    """Load a `.keras` file. Raises DeclarationError if it is missing or is not one."""
    if not path.is_file():
        raise DeclarationError(f"source: there is no file {path}", where)
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:
        raise DeclarationError(f"source: {path.name} cannot be loaded: {_first_line(error)}", where) from error


def _function(path: Path, name: str, where: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(f"model_source_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise DeclarationError(f"source: there is no Python file {path}", where)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise DeclarationError(f"source: {path.name} does not import: {_in_file(error, path)}", where) from error
    finally:
        sys.path.remove(str(path.parent))
    function = getattr(module, name, None)
    if not callable(function):
        raise DeclarationError(f"source: {path.name} has no function {name!r}", where)
    return function


def _in_file(error: BaseException, path: Path) -> str:
    """Return the error with the last line of the user's file that it passed through."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename or path).name}:{error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return _first_line(error) + (f" ({path.name}:{lines[-1]})" if lines else "")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
