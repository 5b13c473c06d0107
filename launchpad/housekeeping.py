"""Tasks around the pipeline: a declaration for a new model, the schema for editors, cleaning up."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from pydantic import ValidationError

from launchpad import console, declaration, files
from launchpad.errors import DeclarationError, GateFailed
from launchpad.exclusive import exclusive
from launchpad.layout import Layout
from launchpad.spec import Model

TEMPLATE = """\
# yaml-language-server: $schema=./{schema}
name: {project}

models:
  {name}:
    source: {source}
{signatures}
    acceptance: {{parity: 1e-5}}
    # data: path/to/data.npz    # x_train, y_train, x_test, y_test: to check and load-test with real examples
    # preprocessing:            # inside the graph, for every signature
    #   - normalize: {{mean: 127.5, scale: 127.5}}

serving:
  image: tensorflow/serving:2.20.0
  backend: auto
  ports: {{rest: 8501, grpc: 8500}}
  batching: off                 # or max_batch_size, batch_timeout_micros, num_batch_threads, ...
  flags:
    rest_api_num_threads: 64    # a request holds its thread while it is served
    grpc_max_threads: 64

loadtest:
  profile: steady
  profiles:
    steady: {{users: 16, duration_s: 30}}

objectives:
  p99_ms: 100
  error_rate: 0.001
"""


def init(root: Path, source: str, name: str, force: bool) -> None:
    """Write `pipeline.yaml` for a model source, with the signatures that it has.

    Raises DeclarationError if there is a pipeline.yaml already (unless `force`), or the source is none; the file stays
    as it is then.
    """
    path = root / declaration.FILE
    if path.exists() and not force:
        raise DeclarationError(f"there is a {declaration.FILE} already", str(path), "give --force to replace it")
    model = _model(source)
    place = root / (source.rpartition(":")[0] if model.source_kind == "function" else source)
    if not place.exists():
        raise DeclarationError(f"there is no {source}", fix="a path below this checkout, or an absolute one")
    if place.is_dir() != (model.source_kind == "saved_model"):
        kinds = {"function": "a Python file", "keras": "a .keras file", "saved_model": "a SavedModel folder"}
        raise DeclarationError(f"{place} is not {kinds[model.source_kind]}", fix="give --source the model's own path")
    name = _as_name(name or (source.rpartition(":")[2] if model.source_kind == "function" else place.stem))
    signatures = _signatures(place) if model.source_kind == "saved_model" else ["serving_default"]
    lines = "\n".join(f"      {_scalar(signature)}: {{}}" for signature in signatures)
    values = {"project": _as_name(root.name), "name": name, "source": source}
    text = TEMPLATE.format(
        schema=declaration.SCHEMA_FILE,
        signatures=f"    signatures:\n{lines}",
        **{key: _scalar(value) for key, value in values.items()},
    )
    declaration.parse(text, root)
    files.write_text(path, text)
    console.say(f"wrote {declaration.FILE} for {name}; `invoke deploy-local` serves it")


def _model(source: str) -> Model:
    try:
        return Model(source=source)
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise DeclarationError(f"--source {source!r}: {said}") from None


def _scalar(text: str) -> str:
    """Return a text as YAML has it, in quotes where it would be read as something else."""
    return yaml.safe_dump([text], default_flow_style=True, allow_unicode=True, width=10**6)[1:-2]


def _signatures(place: Path) -> list[str]:
    from launchpad.export.stage import quiet_tensorflow

    with quiet_tensorflow():
        from launchpad.export.savedmodel import Served

        with Served(place) as served:
            return sorted(served.signatures)


def _as_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "model"


def write_schema(root: Path, check: bool) -> None:
    """Write the JSON Schema of the declaration; with `check` raise GateFailed if the file is not that."""
    path = root / declaration.SCHEMA_FILE
    current = declaration.schema()
    if not check:
        files.write_text(path, current)
    elif not path.exists() or path.read_bytes() != current.encode():
        raise GateFailed(f"{path.name} is not the schema of the types", fix="run `invoke schema`")
    console.say(f"{path.name} is the schema of the types")


def clean(root: Path, store: bool) -> None:
    """End the server and delete the private folder but for locks, which may be held; the run store only on request."""
    from launchpad.launch.stage import stop
    from launchpad.monitor.watch import end as end_monitor

    layout = Layout(root)
    with exclusive(layout.lock):
        end_monitor(layout)
        stop(layout)
        for path in layout.private.iterdir():
            if path.suffix != ".lock" and path != layout.lock and (store or not path.name.startswith("store.")):
                files.remove(path)
    console.say(f"cleaned {layout.relative(layout.private)}; artifacts, runs and reports are untouched")
