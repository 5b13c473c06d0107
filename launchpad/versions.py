"""Versions of TensorFlow: who exported a model, and whether a server is old enough to be unable to load it."""

from __future__ import annotations

import re

from launchpad import files
from launchpad.layout import Layout
from launchpad.spec import Pipeline


def minor(text: str) -> tuple[int, int] | None:
    """Return the release that a version text names, such as (2, 20) for `2.20.0-gpu`; None if it names none."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def newer(exporter: str, server: str) -> bool:
    """Tell whether an export is of a newer release than the server, which may then lack operations that it uses."""
    made_by, read_by = minor(exporter), minor(server)
    return bool(made_by and read_by and made_by > read_by)


def exporters(layout: Layout, pipeline: Pipeline) -> dict[str, str]:
    """Return the TensorFlow version that exported each model, from the manifests that are there."""
    found = {}
    for name, model in pipeline.models.items():
        manifest = files.read_mapping(layout.evidence(name, model.version) / "manifest.json")
        if "tensorflow" in manifest:
            found[name] = manifest["tensorflow"]
    return found
