"""A real Docker engine, and a stand-in for the tensorflow/serving image: images cannot be pulled where tests run.

Without an engine the tests say 'not run: no Docker engine', which counts as a failure where CI=true.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from launchpad import engine as kernel
from launchpad.errors import EnvironmentFault

STAND_IN = "tfs-launchpad-stand-in:2.20.0"
EMPTY = "tfs-launchpad-empty:1"
START_TIMEOUT_S = 60.0
BRIDGE = f"launchpad{os.getpid() % 100_000}"  # at most 15 characters


class Engine:
    """A Docker engine: one that was there, or an own one that can be stopped and started.

    The own one has a bridge of its own too: on docker0, which all engines take, its containers would get the addresses
    of another's, and of what one that was killed has left behind.
    """

    def __init__(self, address: str, folder: Path | None = None) -> None:
        self.address = address
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_own(self) -> bool:
        return self._folder is not None

    @property
    def client(self) -> docker.DockerClient:
        return docker.DockerClient(base_url=self.address, version="auto", timeout=120)

    def start(self) -> None:
        """Start the own engine; its data stays from one start to the next."""
        assert self._folder
        folders = [f"--data-root={self._folder / 'data'}", f"--exec-root={self._folder / 'exec'}"]
        places = [f"--host={self.address}", f"--pidfile={self._folder / 'pid'}", f"--bridge={BRIDGE}"]
        if not Path("/sys/class/net", BRIDGE).exists():
            subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True)
            subprocess.run(["ip", "address", "add", f"10.213.{os.getpid() % 256}.1/24", "dev", BRIDGE], check=True)
            subprocess.run(["ip", "link", "set", BRIDGE, "up"], check=True)
        with (self._folder / "dockerd.log").open("ab") as log:
            command = ["dockerd", *places, *folders]
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(self.address):
            if self._process.poll() is not None or time.monotonic() > deadline:
                end = (self._folder / "dockerd.log").read_text(errors="replace")[-500:]
                self.stop()
                raise RuntimeError(f"dockerd does not start: {end}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End the own engine, by its process."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The engine that answers, or one that is started for the tests; DOCKER_HOST names it meanwhile."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # where dockerd and debootstrap are
    before = os.environ.get("DOCKER_HOST")
    there = kernel.address()
    if _answers(there):
        yield Engine(there)
        return
    folder = tmp_path_factory.mktemp("docker")
    own = Engine(f"unix://{folder}/docker.sock", folder)
    try:
        if shutil.which("dockerd") is None or os.getuid():
            raise RuntimeError("dockerd is not installed" if os.getuid() == 0 else "only root may start dockerd")
        own.start()
    except RuntimeError as error:
        _not_run(str(error))
    os.environ["DOCKER_HOST"] = own.address
    yield own
    os.environ.pop("DOCKER_HOST")
    if before:
        os.environ["DOCKER_HOST"] = before
    for container in own.client.containers.list(all=True):
        container.remove(force=True)
    own.stop()
    subprocess.run(["ip", "link", "delete", BRIDGE], check=False)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def stand_in(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of an image with the stock contract of tensorflow/serving and the embedded server as its binary."""
    from stand_in import make_stand_in

    return _cached(engine, STAND_IN, lambda: make_stand_in(engine.client, STAND_IN, tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="session")
def empty_image(engine: Engine) -> str:
    """The name of an image with nothing in it: enough to build on, not to run."""
    from stand_in import make_empty

    return _cached(engine, EMPTY, lambda: make_empty(engine.client, EMPTY))


def _cached(engine: Engine, name: str, make) -> str:
    """Make an image unless the engine has it from this run; another run's may be of older code."""
    if engine.is_own or not engine.client.images.list(name):
        make()
    return name


def _answers(address: str) -> bool:
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = address
    try:
        kernel.connect().close()
        return True
    except EnvironmentFault:
        return False
    finally:
        os.environ.pop("DOCKER_HOST")
        if before:
            os.environ["DOCKER_HOST"] = before


def _not_run(why: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"not run: no Docker engine ({why})", pytrace=False)
    pytest.skip(f"not run: no Docker engine ({why})")


def dockerise(checkout, stand_in: str):
    """Have a checkout run on the docker backend, with the stand-in as its base image."""
    checkout.edit(("backend: embedded", "backend: docker"), ("image: tensorflow/serving:2.20.0", f"image: {stand_in}"))
    return checkout


@pytest.fixture
def dockerised(checkout, stand_in: str):
    """A checkout of its own on the docker backend."""
    return dockerise(checkout, stand_in)


@pytest.fixture
def on_empty(checkout, empty_image: str):
    """A checkout whose image is built on nothing, in no time."""
    checkout.edit(("image: tensorflow/serving:2.20.0", f"image: {empty_image}"))
    return checkout
