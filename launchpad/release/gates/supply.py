"""Gates on what else is shipped: licences and known vulnerabilities of the server's Python parts.

The embedded server is Python: its parts are the packages that `launchpad.modelserver` needs, with all that they need,
at the versions of `requirements.txt`. An image is looked into: those of TensorFlow Serving hold a binary and no Python,
another base may hold some. An installed tensorflow_model_server is a binary.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from launchpad import engine, files, imagefile
from launchpad.errors import EnvironmentFault
from launchpad.gates import Gate
from launchpad.release.candidate import Candidate, Finding, not_run

EMBEDDED = (
    *("tensorflow", "numpy", "protobuf", "uvloop", "httptools", "pysimdjson", "orjson", "python-rapidjson", "hpack"),
    *("google-crc32c", "tensorflow-serving-api", "ml-dtypes"),
)
"""Packages that the embedded server imports."""
COPYLEFT = re.compile(r"\b(A|L)?GPL|GNU (Affero |Lesser )?General Public|EUPL|SSPL|CC-BY-NC", re.IGNORECASE)
"""Licences that a person has to look at before a server with them is given away."""
AUDIT_TIMEOUT_S = 300


INSTALLED = re.compile(r"[^/]+\.(?:dist-info/.*|egg-info(?:/.*)?)$")
"""What the installation of a package leaves in an image: a folder, or of old a file, with what it says of itself."""


@dataclass(frozen=True)
class Part:
    """A Python package of the server; licence: what it says of it, empty where it says nothing."""

    name: str
    version: str
    licence: str


def licences(candidate: Candidate) -> Finding:
    """Every Python part of the server has a known licence, and none that asks for more than notices."""
    found, owner, evidence = parts(candidate)
    doubtful = [
        f"{part.name}: {part.licence or 'no licence named'}"
        for part in found
        if not part.licence or is_copyleft(part.licence)
    ]
    by_licence: dict[str, list[str]] = {}
    for part in found:
        by_licence.setdefault(part.licence or "none named", []).append(part.name)
    notes = [*doubtful, f"{len(found)} packages of {owner}"]
    return Finding([Gate("packages to look at", len(doubtful), "<=", 0)], [evidence], notes, {"licences": by_licence})


def vulnerabilities(candidate: Candidate) -> Finding:
    """pip-audit knows no vulnerability of a Python part of the server."""
    what = "known vulnerabilities"
    found, owner, evidence = parts(candidate)
    note = f"{len(found)} packages of {owner}"
    if not found:
        return Finding([Gate(what, 0, "<=", 0)], [evidence], [note])
    named = [f"{part.name}=={part.version}" for part in found]
    for chosen in (named[:1], named):  # where the data cannot be had, one package tells
        report, obstacle = _audit(chosen)
        if obstacle:
            return not_run(what, obstacle)
    flaws = [
        f"{part['name']} {part['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'none yet'}"
        for part in report
        for flaw in part["vulns"]
    ]
    written, published = candidate.keep("audit.json")
    files.write_json(written, report)
    return Finding([Gate(what, len(flaws), "<=", 0)], [published], [*flaws, note])


def parts(candidate: Candidate) -> tuple[list[Part], str, Path]:
    """Return the server's Python packages by name, whose they are, and the file that says so.

    Raises EnvironmentFault where the server is an image that is not here.
    """
    from launchpad.backends import choose

    layout, backend = candidate.layout, choose(candidate.context).backend.name
    if backend == "native":
        return [], "the installed tensorflow_model_server, a binary", layout.root / "pipeline.yaml"
    if backend == "embedded":
        installed = map(importlib.metadata.distribution, sorted(closure(EMBEDDED)))
        return [_part(one) for one in installed], "the embedded server", layout.root / "requirements.txt"
    image = imagefile.Image.load(layout)
    if image is None:
        raise EnvironmentFault("no image was built here", fix="run `invoke build`")
    with tempfile.TemporaryDirectory() as folder:
        engine.copy_out(engine.connect(), image.id, INSTALLED, Path(folder))
        there = importlib.metadata.distributions(path=[folder])
        return sorted(map(_part, there), key=lambda part: part.name), f"the image {image.tag}", layout.image_record


def _part(installed: Distribution) -> Part:
    return Part(installed.name, installed.version, licence(installed))


def _audit(named: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Return what pip-audit reports of packages, and why that is not all; the reason is empty when it is."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(named))
        file.flush()
        command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--format=json", "-r", file.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=AUDIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return [], f"pip-audit had no answer in {AUDIT_TIMEOUT_S} s"
    try:
        report = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        said = ([line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"])[-1]
        reason = "the service that has them cannot be reached" if "ConnectionError" in said else said[:200]
        return [], f"pip-audit did not get its data: {reason}"
    skipped = [part["skip_reason"] for part in report if "skip_reason" in part]
    return report, f"pip-audit could not judge: {skipped[0]}" if skipped else ""


def closure(names: Iterable[str]) -> set[str]:
    """Return packages with all that they need here, as they are installed."""
    due, found = list(names), set[str]()
    while due:
        name = re.sub(r"[-_.]+", "-", due.pop()).lower()
        if name in found:
            continue
        try:
            due += _needs(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
    return found


def licence(installed: Distribution) -> str:
    """Return what a package says of its licence: its SPDX expression, its classifiers, or its own words."""
    metadata: Any = installed.metadata
    classified = [
        entry.rpartition(" :: ")[2] for entry in metadata.get_all("Classifier", ()) if entry.startswith("License ::")
    ]
    return (
        metadata.get("License-Expression")
        or ", ".join(classified)
        or (metadata.get("License") or "").partition("\n")[0]
        or _of_file(installed)
    )


def _of_file(installed: Distribution) -> str:
    """Return the title of a package's licence file, which is its first line; empty where there is none."""
    for file in installed.files or ():
        if file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING")):
            lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
            return lines[0] if lines else ""
    return ""


def is_copyleft(said: str) -> bool:
    """Tell whether a licence, or every choice of `A OR B`, asks for more than notices."""
    return all(COPYLEFT.search(choice) for choice in re.split(r"\bOR\b", said))


def _needs(name: str) -> Iterator[str]:
    for text in importlib.metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name
