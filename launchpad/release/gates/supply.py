"""Gates on what else is shipped: licences and known vulnerabilities of the server's Python parts.

The image of TensorFlow Serving holds a binary and bash and no Python. The embedded server is Python: its parts are the
packages that `launchpad.modelserver` needs, with all that they need, at the versions of `requirements.txt`.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from packaging.requirements import Requirement

from launchpad import files
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


def licences(candidate: Candidate) -> Finding:
    """Every Python part of the server has a known licence, and none that asks for more than notices."""
    what = "packages to look at"
    if _without_python(candidate):
        return Finding([Gate(what, 0, "<=", 0)], [candidate.layout.dockerfile], ["the image has no Python parts"])
    found = {name: licence(name) for name in sorted(closure(EMBEDDED))}
    doubtful = [
        f"{name}: {said or 'no licence named'}" for name, said in found.items() if not said or is_copyleft(said)
    ]
    by_licence: dict[str, list[str]] = {}
    for name, said in found.items():
        by_licence.setdefault(said or "none named", []).append(name)
    facts = {"licences": by_licence}
    notes = [*doubtful, f"{len(found)} packages of the embedded server"]
    return Finding([Gate(what, len(doubtful), "<=", 0)], [candidate.layout.root / "requirements.txt"], notes, facts)


def vulnerabilities(candidate: Candidate) -> Finding:
    """pip-audit knows no vulnerability of a Python part of the server."""
    what = "known vulnerabilities"
    if _without_python(candidate):
        return Finding([Gate(what, 0, "<=", 0)], [candidate.layout.dockerfile], ["the image has no Python parts"])
    parts = [f"{name}=={importlib.metadata.version(name)}" for name in sorted(closure(EMBEDDED))]
    for chosen in (parts[:1], parts):  # where the data cannot be had, one package tells
        report, obstacle = _audit(chosen)
        if obstacle:
            return not_run(what, obstacle)
    found = [
        f"{part['name']} {part['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'none yet'}"
        for part in report
        for flaw in part["vulns"]
    ]
    written, published = candidate.keep("audit.json")
    files.write_json(written, report)
    notes = [*found, f"{len(parts)} packages of the embedded server"]
    return Finding([Gate(what, len(found), "<=", 0)], [published], notes)


def _audit(parts: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Return what pip-audit reports of packages, and why that is not all; the reason is empty when it is."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(parts))
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


def licence(name: str) -> str:
    """Return what a package says of its licence: its SPDX expression, its classifiers, or its own words."""
    metadata: Any = importlib.metadata.metadata(name)
    classified = [
        entry.rpartition(" :: ")[2] for entry in metadata.get_all("Classifier", ()) if entry.startswith("License ::")
    ]
    return (
        metadata.get("License-Expression")
        or ", ".join(classified)
        or (metadata.get("License") or "").partition("\n")[0]
        or _of_file(name)
    )


def _of_file(name: str) -> str:
    """Return the title of a package's licence file, which is its first line; empty where there is none."""
    for file in importlib.metadata.files(name) or ():
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


def _without_python(candidate: Candidate) -> bool:
    """Tell whether the server that is released is TensorFlow Serving's binary; the declaration and the machine say."""
    from launchpad.backends import choose

    return choose(candidate.context).backend.name != "embedded"
