"""The server image: what goes into it, and `serving/image.json`, the record of the one that was built.

Written by the build stage, read by the docker backend, which runs no image that is not of what is here now.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launchpad import files
from launchpad.layout import MODEL_BATCHING, Layout, numbered
from launchpad.spec import Pipeline

SCRIPTS = ("entrypoint.sh", "healthcheck.sh")
LABELS = "io.tfs-launchpad"
"""Prefix of the labels that images and containers carry."""


@dataclass(frozen=True)
class Image:
    """A built image.

    tag, id: what the engine knows it by; digest: what a registry does, once it was pushed.
    content: hash of what is in it, base apart; base: image, id and digest of what it was built on.
    layers: what made each layer and its size; holds: versions, configuration files, flags.
    """

    tag: str
    id: str
    digest: str | None
    size_bytes: int
    content: str
    base: dict[str, str | None]
    layers: list[dict[str, Any]]
    holds: dict[str, Any]
    revision: str

    def save(self, layout: Layout) -> None:
        files.write_json(layout.image_record, asdict(self))

    @classmethod
    def load(cls, layout: Layout) -> Image | None:
        """Return the record of the image that was built last; None if there is no whole one."""
        record = files.read_json(layout.image_record)
        try:
            return cls(**record) if record else None
        except TypeError:
            return None


def sources(layout: Layout, pipeline: Pipeline) -> dict[str, Path]:
    """Return {path below the checkout: file} of everything that the Dockerfile copies, and of the Dockerfile itself."""
    config = layout.serving_config
    found = [layout.dockerfile, *(layout.serving / name for name in SCRIPTS)]
    found += [config / name for name in files.tree(config)]
    if pipeline.serving.models == "baked":
        for name in pipeline.models:
            folder = layout.versions(name)
            found += [folder / file for file in files.tree(folder)]
    return {layout.relative(path): path for path in found if path.is_file()}


def content(layout: Layout, pipeline: Pipeline) -> str:
    """Return the hash of everything that an image of this checkout would hold, its base apart."""
    return files.digest({name: files.sha256(path) for name, path in sources(layout, pipeline).items()})


def versions(layout: Layout, pipeline: Pipeline) -> dict[str, list[int]]:
    """Return the exported versions of each declared model, increasing."""
    return {name: [int(path.name) for path in numbered(layout.versions(name))] for name in pipeline.models}


def own_batching(layout: Layout, pipeline: Pipeline) -> list[str]:
    """Return the models for which batching parameters of their own are rendered."""
    return [name for name in pipeline.models if (layout.serving_config / name / MODEL_BATCHING).exists()]
