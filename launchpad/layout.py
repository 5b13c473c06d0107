"""Where everything lies in a checkout: one place that knows the folders, so that stages agree on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CANONICAL_MODELS = "/models"
CANONICAL_CONFIG = "/config"
"""The roots that committed files name; an image has them, a local launch puts the deployment folder in their place."""

FLAGS_FILE = "server.flags"
"""The server's command line, among the configuration files."""
MODEL_BATCHING = "batching_params.pbtxt"
"""A model's own batching parameters: the name that the server looks for in a version folder."""


def numbered(folder: Path) -> list[Path]:
    """Return the versions in a folder, increasing; not what a killed export left beside them, such as `.1.new`."""
    there = (path for path in folder.glob("*") if path.name.isascii() and path.name.isdecimal())
    return sorted(there, key=lambda path: int(path.name))


@dataclass(frozen=True)
class Layout:
    root: Path

    # artifacts that are committed
    def versions(self, model: str) -> Path:
        return self.root / "models" / model / "versions"

    def version(self, model: str, version: int) -> Path:
        """The SavedModel of a version, exactly as it is served."""
        return self.versions(model) / str(version)

    def warmup_records(self, model: str, version: int) -> Path:
        return self.version(model, version) / "assets.extra"

    def evidence(self, model: str, version: int) -> Path:
        """What the export measured of a version: manifest.json and examples.npz."""
        return self.root / "models" / model / "evidence" / str(version)

    def examples(self, model: str, version: int) -> Path:
        """What was asked of a version while it was exported, and what it answered."""
        return self.evidence(model, version) / "examples.npz"

    @property
    def serving(self) -> Path:
        return self.root / "serving"

    @property
    def serving_config(self) -> Path:
        return self.serving / "config"

    @property
    def tuned(self) -> Path:
        return self.serving / "tuned.yaml"

    def service_profile(self, model: str) -> Path:
        """What a model's requests cost on the machine that it was tuned on."""
        return self.serving / "profiles" / f"{model}.json"

    @property
    def dockerfile(self) -> Path:
        return self.serving / "Dockerfile"

    @property
    def image_record(self) -> Path:
        """What the build stage says of the image that it built last."""
        return self.serving / "image.json"

    @property
    def locustfile(self) -> Path:
        return self.root / "loadtests" / "locustfile.py"

    def results(self, run: str) -> Path:
        return self.root / "loadtests" / "results" / run

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    def report(self, run: str) -> Path:
        return self.reports / run

    @property
    def notes(self) -> Path:
        """What was changed, why, and what came of it."""
        return self.root / "reports" / "notes"

    @property
    def kubernetes(self) -> Path:
        return self.root / "k8s"

    @property
    def kubernetes_capacity(self) -> Path:
        """The capacity result that the manifests follow from."""
        return self.kubernetes / "capacity.json"

    # what is never committed
    @property
    def private(self) -> Path:
        return self.root / ".launchpad"

    @property
    def deployment(self) -> Path:
        return self.private / "deployment"

    def deployed(self, model: str) -> Path:
        """The model's base path in the deployment: a folder for each version that the server may serve."""
        return self.deployment / "models" / model

    @property
    def server_state(self) -> Path:
        return self.private / "server.json"

    @property
    def server_log(self) -> Path:
        return self.private / "logs" / "server.log"

    @property
    def warmup_result(self) -> Path:
        return self.private / "warmup.json"

    @property
    def lock(self) -> Path:
        return self.private / "lock"

    @property
    def monitor_lock(self) -> Path:
        return self.private / "monitor.lock"

    @property
    def monitor_log(self) -> Path:
        return self.private / "logs" / "monitor.log"

    @property
    def publishing_lock(self) -> Path:
        return self.private / "publishing.lock"

    @property
    def autotune_lock(self) -> Path:
        return self.private / "autotune.lock"

    def relative(self, path: Path) -> str:
        """Return the path as the user would write it in the checkout."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
