"""The deployment folder: what a local server serves from. Hard links to the artifacts, never the artifacts in place."""

from __future__ import annotations

from pathlib import Path

from launchpad import files
from launchpad.errors import EnvironmentFault
from launchpad.layout import CANONICAL_CONFIG, CANONICAL_MODELS, FLAGS_FILE, MODEL_BATCHING, Layout, numbered


def prepare(layout: Layout, models: list[str]) -> None:
    """Make a new deployment folder of every exported version of `models` and the rendered configuration.

    The roots that the configuration names are replaced by the folder's own. It is made beside the present one, which
    may be in use; `files.publish(layout.deployment)` puts it in its place.
    Raises EnvironmentFault if a model has no exported version.
    """
    folder = files.staged(layout.deployment)
    for name in models:
        versions = numbered(layout.versions(name))
        if not versions:
            raise EnvironmentFault(f"{name} has no exported version", "models", "run `invoke export`")
        own_batching = layout.serving_config / name / MODEL_BATCHING
        for version in versions:
            target = folder / "models" / name / version.name
            files.copy_tree(version, target, link=True)
            if own_batching.exists():
                files.copy(own_batching, target / MODEL_BATCHING, link=True)
    if not (layout.serving_config / FLAGS_FILE).exists():
        raise EnvironmentFault("there is no rendered configuration", "serving/config", "run `invoke configure`")
    for name in files.names(layout.serving_config):
        text = (layout.serving_config / name).read_text(encoding="utf-8")
        files.write_text(folder / "config" / name, localise(text, layout.deployment))


def localise(text: str, deployment: Path) -> str:
    """Return a configuration text with the deployment's folders in place of the roots that it names."""
    for root, folder in ((CANONICAL_MODELS, "models"), (CANONICAL_CONFIG, "config")):
        text = text.replace(f'"{root}/', f'"{deployment}/{folder}/').replace(f"={root}/", f"={deployment}/{folder}/")
    return text


def content(layout: Layout, models: list[str]) -> str:
    """Return the hash of everything that a server would serve: versions, configuration, flags."""
    parts = {name: files.tree(layout.versions(name)) for name in models}
    return files.digest([parts, files.tree(layout.serving_config)])
