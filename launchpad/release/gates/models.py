"""Gates on what was exported: parity and accuracy as the export measured them, and the contract with clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launchpad import files
from launchpad.gates import Gate
from launchpad.layout import Layout
from launchpad.release.candidate import Candidate, Finding
from launchpad.release.record import contract_changes
from launchpad.spec import Pipeline

MANIFEST = "manifest.json"


def parity(candidate: Candidate) -> Finding:
    """The model and its signatures agree on held-out examples."""
    return _exported(candidate, "parity")


def accuracy(candidate: Candidate) -> Finding:
    """The model is as accurate on held-out data as declared."""
    return _exported(candidate, "accuracy")


def signatures(candidate: Candidate) -> Finding:
    """No input or output that clients of the previous release use has gone or changed; additions are listed."""
    now = {name: model["signatures"] for name, model in exported(candidate.layout, candidate.pipeline).items()}
    facts = {"signatures": now}
    evidence = [path for _, path, _ in _manifests(candidate.layout, candidate.pipeline)]
    before = {name: model["signatures"] for name, model in (candidate.previous or {"models": {}})["models"].items()}
    broken, added = [], []
    for name in sorted(before.keys() | now.keys()):
        for place, was, is_now in contract_changes(before.get(name, {}), now.get(name, {})):
            if was == "–":
                added.append(f"new: {name} {place} {is_now}")
            else:
                broken.append(f"{'removed' if is_now == '–' else 'changed'}: {name} {place} {was} → {is_now}")
    against = f"against release {candidate.previous['version']}" if candidate.previous else "the first release"
    inputs = [place for place in added if ".inputs." in place]
    notes = [against, *broken, *(added if candidate.previous else [f"{len(inputs)} inputs, {len(added)} with outputs"])]
    return Finding([Gate("inputs and outputs removed or changed", len(broken), "<=", 0)], evidence, notes, facts)


def exported(layout: Layout, pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """Return {model: version, hash of the SavedModel's files, signatures without the graph's own tensor names}."""
    found = {}
    for name, _, manifest in _manifests(layout, pipeline):
        if manifest is not None:
            found[name] = {
                "version": manifest["version"],
                "content": files.digest(manifest["files"]),
                "signatures": {
                    signature: {
                        part: {
                            key: {"dtype": tensor["dtype"], "shape": tensor["shape"]}
                            for key, tensor in parts[part].items()
                        }
                        for part in ("inputs", "outputs")
                    }
                    for signature, parts in manifest["signatures"].items()
                },
            }
    return found


def _exported(candidate: Candidate, what: str) -> Finding:
    gates: list[Gate] = []
    evidence = []
    for name, path, manifest in _manifests(candidate.layout, candidate.pipeline):
        obstacle = _obstacle(candidate.layout, name, manifest)
        if manifest is None or obstacle:
            gates.append(Gate(f"{what} of {name}", None, "<=", None, why=obstacle))
            continue
        evidence.append(path)
        rows = [row for row in manifest["gates"] if row["name"].startswith(f"{what} of ")]
        gates += [Gate(**{key: value for key, value in row.items() if key != "passed"}) for row in rows]
        if not rows:
            gates.append(Gate(f"{what} of {name}", None, "<=", None, why="the export did not measure it"))
    return Finding(gates, evidence)


def content(layout: Layout, model: str, version: int) -> str:
    """Return the hash of the files of an exported version as they are now; empty where they are not its manifest's."""
    manifest = files.read_json(layout.evidence(model, version) / MANIFEST)
    if manifest is None or _obstacle(layout, model, manifest):
        return ""
    return files.digest(manifest["files"])


def _manifests(layout: Layout, pipeline: Pipeline) -> Iterator[tuple[str, Path, dict[str, Any] | None]]:
    for name, model in pipeline.models.items():
        path = layout.evidence(name, model.version) / MANIFEST
        yield name, path, files.read_json(path)


def _obstacle(layout: Layout, name: str, manifest: dict[str, Any] | None) -> str:
    """Say why a manifest proves nothing; empty when it speaks of the files that are there."""
    if manifest is None:
        return "there is no whole manifest; run `invoke export`"
    folder = layout.version(name, manifest["version"])
    for file, sha in manifest["files"].items():
        if not (folder / file).is_file() or files.sha256(folder / file) != sha:
            return f"the manifest is of another {file}; run `invoke export`"
    return ""
