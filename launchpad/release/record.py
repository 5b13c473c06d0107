"""Releases that were made before: their evidence, which is the newest, and how two differ."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launchpad import files
from launchpad.errors import DeclarationError
from launchpad.layout import Layout

EVIDENCE, CHECKLIST = "evidence.json", "checklist.md"
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]*")


def folder(layout: Layout, version: str) -> Path:
    """Return where a release's checklist lies. Raises DeclarationError for a version that cannot name a folder."""
    if not VERSION.fullmatch(version):
        raise DeclarationError(f"{version!r} is no version", fix="such as 1.4.0: letters, digits, dots, - and +")
    return layout.reports / "releases" / version


def load(layout: Layout, version: str) -> Mapping[str, Any]:
    """Return the evidence of a release. Raises DeclarationError if there is none, or it is not whole."""
    path = folder(layout, version) / EVIDENCE
    found = files.read_json(path)
    if not _is_whole(found):
        known = ", ".join(sorted(other.parent.name for other in path.parent.parent.glob(f"*/{EVIDENCE}")))
        what = "is not whole" if path.exists() else "is not there"
        raise DeclarationError(
            f"the evidence of {version} {what}", layout.relative(path), f"there is: {known or 'none'}"
        )
    return found


def previous(layout: Layout, version: str) -> Mapping[str, Any] | None:
    """Return the evidence of the newest other release whose gates all passed or were waived; None without one."""
    found = [evidence for evidence in all_whole(layout) if evidence["version"] != version and evidence["passed"]]
    return max(found, key=lambda evidence: evidence["made"], default=None)


def all_whole(layout: Layout) -> list[Mapping[str, Any]]:
    """Return the evidence of every release whose file is whole."""
    found = (files.read_json(path) for path in sorted((layout.reports / "releases").glob(f"*/{EVIDENCE}")))
    return [evidence for evidence in found if _is_whole(evidence)]


def rows(evidence: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the gates of a release as the store takes them."""
    return [
        measured
        | {
            "name": f"{line['gate']}: {measured['name']}",
            "evidence": ", ".join(line["evidence"]),
            "waiver": f"until {line['waiver']['expires']}: {line['waiver']['reason']}" if line["waiver"] else "",
        }
        for line in evidence["gates"]
        for measured in line["measured"]
    ]


def _is_whole(evidence: Any) -> bool:
    return isinstance(evidence, dict) and {"version", "made", "passed", "models", "gates", "runs"} <= evidence.keys()


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return what differs between two releases as (what, before, after)."""
    rows: list[tuple[str, str, str]] = []
    for key in ("revision", "configuration", "profile"):
        rows.append((key, _text(before.get(key)), _text(after.get(key))))
    for name in sorted(before["models"].keys() | after["models"].keys()):
        sides = [release["models"].get(name, {}) for release in (before, after)]
        rows.append((f"{name}: version", _text(sides[0].get("version")), _text(sides[1].get("version"))))
        rows.append((f"{name}: content", _text(sides[0].get("content")), _text(sides[1].get("content"))))
        changes = list(contract_changes(sides[0].get("signatures", {}), sides[1].get("signatures", {})))
        rows += [(f"{name}: {place}", was, now) for place, was, now in changes]
    measured = [dict(_measurements(release)) for release in (before, after)]
    for name in dict.fromkeys([*measured[0], *measured[1]]):
        rows.append((name, measured[0].get(name, "–"), measured[1].get(name, "–")))
    return [row for row in rows if row[1] != row[2]]


def contract_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (place, before, after) for each input and output that differs; `–` where there is none.

    Signatures are {signature: {"inputs": {key: {dtype, shape}}, "outputs": ...}}.
    """
    sides = [
        {
            f"{signature}.{part}.{key}": f"{tensor['dtype']}{tensor['shape']}".replace("None", "?")
            for signature, parts in release.items()
            for part in ("inputs", "outputs")
            for key, tensor in parts[part].items()
        }
        for release in (before, after)
    ]
    for place in sorted(sides[0].keys() | sides[1].keys()):
        was, now = (side.get(place, "–") for side in sides)
        if was != now:
            yield place, was, now


def _measurements(evidence: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for line in evidence["gates"]:
        for gate in line["measured"]:
            value = "not run" if gate["value"] is None else f"{gate['value']:.4g} {gate['unit']}".strip()
            yield f"{line['gate']}: {gate['name']}", f"{value} ({line['verdict']})"


def _text(value: Any) -> str:
    return "–" if value is None else str(value)[:16]
