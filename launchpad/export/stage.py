"""The export stage: each declared model becomes a verified SavedModel version with warmup requests beside it."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import functools
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launchpad import batching, console, files
from launchpad.errors import DeclarationError, GateFailed, LaunchpadError, Problem
from launchpad.gates import Gate
from launchpad.layout import Layout
from launchpad.spec import Model
from launchpad.stage import ArtifactStage, Context, Stopwatch, Unit, spread

if TYPE_CHECKING:
    import numpy as np

    from launchpad.examples import Examples
    from launchpad.export.data import Dataset
    from launchpad.export.savedmodel import SignatureInfo

MANIFEST = "manifest.json"
EXAMPLES = "examples.npz"


class Export(ArtifactStage):
    name = "export"
    kernel = ("examples.py",)
    summary = "train, export with preprocessing inside, verify as the server loads it"

    def folder(self, layout: Layout) -> Path:
        return layout.root / "models"

    def units(self, context: Context) -> Iterator[Unit]:
        declaration, layout = context.declaration, context.layout
        queues = batching.effective(declaration).queues
        for name, model in declaration.pipeline.models.items():
            evidence = layout.evidence(name, model.version)
            aside = {"warmup", "batching", "version_policy", "version_labels"}
            declared = model.model_dump(mode="json", exclude=aside, exclude_unset=True)
            yield Unit(
                name=name,
                reads={**spread(f"models.{name}", declared), **_versions()},
                sources=tuple(_sources(layout.root, model)),
                writes=(layout.version(name, model.version), evidence),
                work=functools.partial(_export, context, name),
            )
            queue = queues[name]
            sizes = queue.batch_sizes if queue else _client_batches(context, name)
            yield Unit(
                name=f"{name} warmup requests",
                reads={f"batch sizes of {name}": sizes, **spread(f"models.{name}.warmup", model.warmup)},
                sources=(evidence,),
                writes=(layout.warmup_records(name, model.version),),
                work=functools.partial(_write_warmup, context, name, sizes),
            )


def _versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in ("tensorflow", "keras")}


def _sources(root: Path, model: Model) -> Iterator[Path]:
    """Yield the files that a model is made from. Modules beside a model function may be imported by it."""
    if model.source_kind == "function":
        yield from sorted((root / model.source.rpartition(":")[0]).parent.glob("*.py"))
    else:
        yield root / model.source
    if model.data:
        yield root / model.data


def _client_batches(context: Context, name: str) -> tuple[int, ...]:
    """Return the batch sizes that reach an unbatched model: those that the load tests send, and one."""
    profiles = context.declaration.pipeline.loadtest.profiles.values()
    return tuple(sorted({1} | {line.batch for profile in profiles for line in profile.traffic if line.model == name}))


@contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Keep what TensorFlow writes to standard error, notes about this machine, off the screen.

    It is shown if the block fails with anything but an error meant for the user. A full disk, which TensorFlow
    reports in exceptions of its own, leaves as the OSError that it is.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except (LaunchpadError, KeyboardInterrupt):
            raise
        except BaseException as error:
            if (full := os.strerror(errno.ENOSPC)) in str(error):
                raise OSError(errno.ENOSPC, full) from error
            notes.seek(0)
            os.write(kept, notes.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


@quiet_tensorflow()
def _export(context: Context, name: str, place: Callable[[Path], Path]) -> None:
    """Make one version and its evidence. Raises GateFailed, with nothing published, if it is not fit to be served."""
    layout, model = context.layout, context.declaration.pipeline.models[name]
    version, evidence = place(layout.version(name, model.version)), place(layout.evidence(name, model.version))
    clock = Stopwatch()
    dataset = _dataset(context, name)
    make = _from_saved_model if model.source_kind == "saved_model" else _from_keras
    verified = make(context, name, dataset, version)
    gates = list(_gates(name, model, verified))
    _refuse_unfit(gates, context.declaration.where("models", name, "source"))
    evidence.mkdir()
    verified.examples.save(evidence / EXAMPLES)
    manifest = {
        "model": name,
        "version": model.version,
        "source": model.source,
        "source_revision": _revision(layout.root),
        "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(clock.seconds, 1),
        **_versions(),
        "signatures": {key: dataclasses.asdict(info) for key, info in verified.signatures.items()},
        "gates": [gate.as_dict() for gate in gates],
        "parity": {
            "examples": len(verified.examples),
            "origin": verified.origin,
            "largest_difference": verified.differences,
        },
        "files": files.tree(version),
    }
    files.write_json(evidence / MANIFEST, manifest)


@dataclasses.dataclass(frozen=True)
class Verified:
    """A SavedModel that was written, and what running it the way the server does has shown.

    examples: requests with the answers to expect. differences: {signature: largest difference to them}.
    answers, labels: what the model says of all held-out examples, and what they are; for the accuracy.
    """

    signatures: dict[str, SignatureInfo]
    examples: Examples
    differences: dict[str, float]
    answers: dict[str, np.ndarray]
    labels: np.ndarray | None
    origin: str


def _dataset(context: Context, name: str) -> Dataset | None:
    from launchpad.export import data

    path = context.declaration.pipeline.models[name].data
    return data.load(context.layout.root / path, context.declaration.where("models", name, "data")) if path else None


def _from_keras(context: Context, name: str, dataset: Dataset | None, version: Path) -> Verified:
    """Train or load a Keras model and write it with its declared signatures."""
    from launchpad.export import parity, savedmodel

    declaration = context.declaration
    model = declaration.pipeline.models[name]
    keras_model = _keras_model(context, name, dataset)
    try:
        with console.progress(f"export {name}: writing the SavedModel"):
            savedmodel.write(keras_model, model, version)
    except ValueError as error:
        raise DeclarationError(
            f"signatures of {name}: {error}", declaration.where("models", name, "signatures")
        ) from error
    with console.progress(f"export {name}: parity of its signatures"):
        raw = parity.raw_examples(dataset, keras_model, model)
        answers = parity.answers(keras_model, model, raw.values)
        examples = parity.encoded(keras_model, model, raw, answers, slice(model.acceptance.parity_examples))
        with savedmodel.Served(version, declaration.where("models", name, "source")) as served:
            differences = parity.differences(served, examples)
            return Verified(served.signatures, examples, differences, answers, raw.labels, raw.origin)


def _from_saved_model(context: Context, name: str, dataset: Dataset | None, version: Path) -> Verified:
    """Take a SavedModel as it is, without the warmup requests that it may bring."""
    from launchpad.export import parity, savedmodel

    model = context.declaration.pipeline.models[name]
    where = context.declaration.where("models", name, "source")
    source = context.layout.root / model.source
    if not source.is_dir():
        raise DeclarationError(f"source: there is no SavedModel folder {model.source}", where)
    files.copy_tree(source, version)
    files.remove(version / "assets.extra")
    raw = parity.Raw(dataset.x_test, dataset.y_test, "held-out data") if dataset else None
    with savedmodel.Served(version, where) as served:
        wanted = _wanted(context, name, served.signatures)
        examples = parity.of_saved_model(str(source), wanted, raw, model.acceptance.parity_examples, model.seed)
        answers = next(iter(examples.outputs.values()), {})
        differences = parity.differences(served, examples)
        return Verified(wanted, examples, differences, answers, examples.labels, raw.origin if raw else "synthetic")


def _keras_model(context: Context, name: str, dataset: Dataset | None) -> Any:
    from launchpad.export import source

    root, model = context.layout.root, context.declaration.pipeline.models[name]
    where = context.declaration.where("models", name, "source")
    with console.progress(f"export {name}: {'training' if model.source_kind == 'function' else 'loading'}") as advance:
        if model.source_kind == "keras":
            return source.from_keras_file(root / model.source, where)
        return source.from_function(root, model.source, where, dataset, model.seed, advance)


def _wanted(context: Context, name: str, there: dict[str, SignatureInfo]) -> dict[str, SignatureInfo]:
    """Return the declared signatures of a SavedModel. Raises DeclarationError for those that it lacks."""
    declaration = context.declaration
    problems = [
        Problem(
            f"the SavedModel of {name} has no signature {signature!r}",
            declaration.where("models", name, "signatures", signature),
            f"it has: {', '.join(sorted(there)) or 'none'}",
        )
        for signature in declaration.pipeline.models[name].signatures
        if signature not in there
    ]
    if problems:
        raise DeclarationError(problems)
    return {signature: there[signature] for signature in declaration.pipeline.models[name].signatures}


def _gates(name: str, model: Model, verified: Verified) -> Iterator[Gate]:
    from launchpad.export import parity

    for signature in verified.signatures:
        difference = verified.differences.get(signature)
        why = "what its clients send cannot be known from the SavedModel"
        yield Gate(f"parity of {name}, {signature}", difference, "<=", model.acceptance.parity, why=why)
    labels, limit = verified.labels, model.acceptance.accuracy
    measured = parity.accuracy(verified.answers, labels) if labels is not None and limit else None
    why = "no limit declared" if labels is not None else "no held-out data declared"
    yield Gate(f"accuracy of {name}", measured, ">=", limit, why=why)


def _refuse_unfit(gates: list[Gate], where: str) -> None:
    failed = [gate for gate in gates if gate.passed is False]
    if failed:
        raise GateFailed(
            [
                Problem(f"{gate.name} is {gate.measured}, must be {gate.required}; not exported", where)
                for gate in failed
            ]
        )


@quiet_tensorflow()
def _write_warmup(context: Context, name: str, sizes: tuple[int, ...], place: Callable[[Path], Path]) -> None:
    from launchpad.examples import Examples
    from launchpad.export import records

    model, layout = context.declaration.pipeline.models[name], context.layout
    folder = place(layout.warmup_records(name, model.version))
    folder.mkdir()
    examples: Examples = Examples.load(layout.evidence(name, model.version) / EXAMPLES)
    if not model.warmup.enabled or not examples.inputs:
        why = "no examples of its signatures" if model.warmup.enabled else "switched off in the declaration"
        files.write_json(folder / "warmup.json", {"records": 0, "why": why})
        return
    with console.progress(f"export {name}: warmup requests"):
        written = records.write(folder / records.FILE, name, examples, sizes)
    summary = {"signatures": sorted(examples.inputs), **dataclasses.asdict(written)}
    files.write_json(folder / "warmup.json", {**summary, "sha256": files.sha256(folder / records.FILE)})


def _revision(root: Path) -> str | None:
    """Return the commit that the checkout is at, `+changes` when files differ from it, None outside git."""
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return None
    changes = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=False
    )
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
