"""A checkout of its own for each test: the repository's files copied, free ports declared, no server left behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from launchpad.launch.stage import stop
from launchpad.layout import Layout

REPOSITORY = Path(__file__).parents[2]
COPIED = ("launchpad", "models", "serving", "tasks.py", "pipeline.yaml", "pipeline.schema.json")


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class Checkout:
    """A copy of the repository in a folder of its own, and its commands."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layout = Layout(root)
        for name in COPIED:
            source, target = REPOSITORY / name, root / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            else:
                shutil.copy2(source, target)
        (root / "loadtests").mkdir()
        shutil.copy2(REPOSITORY / "loadtests" / "locustfile.py", root / "loadtests")
        self.rest_port, self.grpc_port = free_ports(2)
        ports = ("rest: 8501, grpc: 8500", f"rest: {self.rest_port}, grpc: {self.grpc_port}")
        self.edit(ports, ("backend: auto", "backend: embedded"))
        self.invoke("configure", check=True)

    def edit(self, *changes: tuple[str, str]) -> None:
        """Replace text in pipeline.yaml; each text must be there."""
        path = self.root / "pipeline.yaml"
        text = path.read_text()
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        path.write_text(text)

    def declare(self, **sections: object) -> None:
        """Put other sections in the place of those of pipeline.yaml."""
        path = self.root / "pipeline.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | sections, sort_keys=False))

    def invoke(self, *words: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run an Invoke task to its end; output and errors come back as one text in `stdout`."""
        done = subprocess.run(self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **self.how())
        assert not check or done.returncode == 0, done.stdout
        return done

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start an Invoke task."""
        return subprocess.Popen(self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **self.how())

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "invoke", *words]

    def how(self) -> dict:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return {"cwd": self.root, "text": True, "env": {**environment, "PYTHONUNBUFFERED": "1"}}

    def runs(self) -> list[Path]:
        """Return the run folders, oldest first."""
        return sorted((self.root / "loadtests" / "results").glob("*"))


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    made = Checkout(tmp_path / "checkout")
    yield made
    stop(made.layout)


@pytest.fixture(scope="module")
def shared_checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """One checkout for all tests of a module, which leave it as they found it."""
    made = Checkout(tmp_path_factory.mktemp("shared") / "checkout")
    yield made
    stop(made.layout)
