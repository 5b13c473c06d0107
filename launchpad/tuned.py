"""`serving/tuned.yaml`: what `invoke tune` found, for which model and machine, and when it no longer speaks for them.

What of it is obeyed is `batching`'s; this is the rest.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from launchpad import files, machine
from launchpad.declaration import Declaration
from launchpad.errors import EnvironmentFault, Problem
from launchpad.layout import Layout, numbered
from launchpad.spec import Batching, BatchQueue
from launchpad.stage import spread

HEADER = (
    "# Written by `invoke tune`; obeyed where pipeline.yaml says `batching: tuned`. `evidence`: what was measured.\n"
)
MACHINE = ("processor", "cores", "tensorflow")
"""What a measurement depends on, of what describes a machine."""


def model_digest(layout: Layout, model: str) -> str:
    """Return what names the content of a model's newest version; not of warmup requests, which follow from batching.

    Raises EnvironmentFault if no version was exported.
    """
    versions = numbered(layout.versions(model))
    if not versions:
        raise EnvironmentFault(f"{model} has no exported version", "models", "run `invoke export`")
    return files.digest(files.tree(versions[-1], leave_out=[versions[-1] / "assets.extra"]))[:16]


def other_machine(known: dict[str, Any]) -> list[str]:
    """Return in what this machine differs from one that was described."""
    here = machine.describe()
    return [f"{key} was {known.get(key)}, is {here[key]}" for key in MACHINE if known.get(key) != here[key]]


def write(
    layout: Layout, model: str, queue: BatchQueue | None, threads: int, evidence: dict[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Write what was found for a model; what is there of others stays. Return what differs: {key: (before, after)}.

    The batch threads serve all models: they are as many as the model needs that needs most.
    """
    found = _read(layout)
    before = _parameters(found)
    evidences = found.get("evidence") or {}
    models = {name: own for name, own in (found.get("models") or {}).items() if name in evidences}
    models[model] = _plain(queue)
    evidences[model] = {"num_batch_threads": threads if queue else None, **evidence}
    batched = [own for own in models.values() if own != "off"]
    most = max((one["num_batch_threads"] or 0 for one in evidences.values()), default=0)
    server: Any = "off"
    if batched:
        shared = queue or BatchQueue.model_validate_json(json.dumps(batched[0]))
        server = _plain(Batching(**shared.model_dump(), num_batch_threads=most))
    document = {"batching": server, "models": models, "evidence": evidences}
    files.write_text(layout.tuned, HEADER + yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    after = _parameters(document)
    return {key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)}


def _parameters(document: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for part in ("batching", "models")
        if document.get(part)
        for key, value in spread(f"tuned.{part}", document[part]).items()
    }


def _plain(queue: BatchQueue | None) -> Any:
    return queue.model_dump(mode="json", exclude_none=True, exclude_defaults=True) if queue else "off"


def _read(layout: Layout) -> dict[str, Any]:
    """Return the content of the tuned file; nothing where there is none that can be read."""
    try:
        content = yaml.safe_load(layout.tuned.read_text(encoding="utf-8"))
    except (FileNotFoundError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def doubts(declaration: Declaration) -> list[Problem]:
    """Return why the tuned parameters, where they are obeyed, may not be right here: another model, another machine."""
    pipeline, layout = declaration.pipeline, Layout(declaration.root)
    everywhere = pipeline.serving.batching == "tuned"
    obeying = [
        name
        for name, model in pipeline.models.items()
        if model.batching == "tuned" or (everywhere and model.batching is None)
    ]
    if not obeying:
        return []
    evidences = _read(layout).get("evidence") or {}
    place = layout.relative(layout.tuned)
    found = []
    for name in obeying:
        evidence = evidences.get(name)
        remedy = f"run `invoke tune --model {name}`"
        if not isinstance(evidence, dict):
            found.append(Problem(f"nothing was tuned for {name}", place, remedy))
            continue
        if evidence.get("model_digest") != model_digest(layout, name):
            found.append(Problem(f"{name} is not the model that the parameters were tuned for", place, remedy))
        for flag, value in (evidence.get("flags") or {}).items():
            declared = pipeline.serving.flags.get(flag)
            if declared != value:
                what = (
                    f"{name} was tuned with {flag} {value}, declared is {'nothing' if declared is None else declared}"
                )
                found.append(Problem(what, place, f"declare serving.flags.{flag}: {value}"))
        differs = other_machine(evidence.get("machine") or {})
        if differs:
            found.append(Problem(f"{name} was tuned on another machine: {'; '.join(differs)}", place, remedy))
    return found
