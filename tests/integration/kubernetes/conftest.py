"""What the manifests are checked with, apart from the product: kubectl, checkov, schemas of custom resources."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from launchpad import files
from tests.kept import kept

HERE = Path(__file__).parent
PINNED = (HERE / "tools.txt", HERE / "package.json")


def program(name: str, package: str) -> str:
    """Return the path of a program of this machine; without it a test is skipped, and fails where CI is set."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        reason = f"not run: {name} is not installed (apt-get install {package})"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return str(found)


@dataclass(frozen=True)
class Tools:
    """An environment with the pinned tools."""

    folder: Path

    @property
    def kubectl(self) -> Path:
        return self.folder / "bin" / "kubectl"

    def build(self, folder: Path) -> list[dict[str, Any]]:
        """Return the objects that a kustomization gives."""
        done = subprocess.run([self.kubectl, "kustomize", folder], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))

    def policy(self, folder: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Return checkov's findings in a folder: {file: {passed, failed or skipped: findings}}."""
        command = [self.folder / "bin" / "checkov", "--directory", folder, "--framework", "kubernetes"]
        done = subprocess.run([*command, "--output", "json"], capture_output=True, text=True)
        results = json.loads(done.stdout)["results"]
        found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for how in ("passed", "failed", "skipped"):
            for check in results[f"{how}_checks"]:
                kinds = found.setdefault(Path(check["file_path"]).stem, {"passed": [], "failed": [], "skipped": []})
                kinds[how].append(check)
        return found

    def custom_errors(self, objects: list[dict[str, Any]]) -> list[dict[str, str]]:
        """Return what the published schemas of custom resources say against some objects."""
        node = program("node", "nodejs")
        done = subprocess.run(
            [node, HERE / "crds.mjs", self.folder], input=json.dumps(objects), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return [found for found in json.loads(done.stdout) if found["error"]]


@pytest.fixture(scope="session")
def tools() -> Tools:
    """The tools, installed once for their pinned versions; nothing of them enters the product's environment."""
    pinned = files.digest([sys.version, *(path.read_text() for path in PINNED)])[:12]
    return Tools(kept(f"kubernetes-{pinned}", _install))


def _install(folder: Path) -> None:
    npm = program("npm", "npm")
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([*pip, "--require-hashes", "--requirement", HERE / "tools.txt"], check=True)
    shutil.copy2(HERE / "package.json", folder)
    quiet = ["--silent", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    subprocess.run([npm, "install", *quiet], cwd=folder, check=True)
