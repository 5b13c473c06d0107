"""The Docker engine of this machine: reached, asked what it has, and its refusals put into the user's words.

What is built or run with it is the business of others. `docker` is imported only where an engine answers.
"""

from __future__ import annotations

import functools
import io
import os
import re
import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from launchpad.errors import EnvironmentFault, Problem

if TYPE_CHECKING:
    from docker import DockerClient

DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
OLDEST_API = (1, 40)
"""Docker 19.03: the first that is asked for GPUs as it is here."""
CONNECT_TIMEOUT_S = 0.5
ANSWER_TIMEOUT_S = 5.0
REGISTRY_TIMEOUT_S = 5.0
TIMEOUT_S = 120.0
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")

START = "start it (`sudo systemctl start docker`), or declare another serving.backend"


def connect(timeout_s: float = TIMEOUT_S) -> DockerClient:
    """Return a client of the engine. Raises EnvironmentFault, within seconds, if none can be used from here."""
    place = address()
    _reach(place)
    import docker
    from docker.errors import DockerException

    try:
        client = docker.DockerClient(base_url=place, version="auto", timeout=ANSWER_TIMEOUT_S, tls=_tls(place))
        client.api.timeout, client.api.trust_env = timeout_s, False
        spoken = client.version(api_version=False)
    except DockerException as error:
        if re.search("too old|no longer supported", str(error)):
            raise _too_old(place, str(error)) from None
        raise _silent(place) from None
    except OSError:
        raise _silent(place) from None
    api = tuple(int(part) for part in spoken.get("ApiVersion", "0.0").split("."))
    if api < OLDEST_API:
        raise _too_old(place, f"it is {spoken.get('Version', 'unknown')}")
    return client


@functools.cache
def obstacle() -> Problem | None:
    """Return why no engine can be used from here; None if one can. Asked once in a process."""
    try:
        connect(ANSWER_TIMEOUT_S).close()
    except EnvironmentFault as fault:
        return fault.problems[0]
    return None


def address() -> str:
    """Return the engine's address as the docker command takes it: DOCKER_HOST, the current context, the default."""
    if os.environ.get("DOCKER_HOST"):
        return os.environ["DOCKER_HOST"]
    if os.environ.get("DOCKER_CONTEXT") or os.path.exists(os.path.expanduser("~/.docker/config.json")):
        from docker.context import ContextAPI

        current = ContextAPI.get_current_context()
        if current is not None and current.Host:
            return str(current.Host).replace("http+unix://", "unix://")
    return DEFAULT_ADDRESS


def local_image(client: DockerClient, name: str) -> dict[str, Any] | None:
    """Return what the engine knows of an image that it has; None if it has none of that name or id."""
    from docker.errors import ImageNotFound

    with told(f"looking for the image {name}"):
        try:
            return dict(client.images.get(name).attrs)
        except ImageNotFound:
            return None


def copy_out(client: DockerClient, image: str, wanted: re.Pattern[str], folder: Path) -> None:
    """Copy the files of an image whose paths end as wanted into a folder, under that end.

    The image is read as a stream, and whatever is in it can be looked at: nothing of it runs. Raises EnvironmentFault
    where the engine does not have it.
    """
    with told(f"reading the image {image}"):
        container = client.api.create_container(image, ["none"], network_disabled=True)["Id"]
        try:
            with tarfile.open(fileobj=io.BufferedReader(_Stream(client.api.export(container))), mode="r|") as archive:
                for member in archive:
                    if member.isfile() and (end := wanted.search(member.name)):
                        path = folder / end.group()
                        path.parent.mkdir(parents=True, exist_ok=True)
                        content = archive.extractfile(member)
                        path.write_bytes(content.read() if content else b"")
        finally:
            client.api.remove_container(container, force=True)


class _Stream(io.RawIOBase):
    """Pieces of bytes as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or next(self._pieces, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


@functools.cache
def pull_obstacle(name: str) -> str:
    """Return why the engine cannot pull an image; empty when it can. Asks the registry, downloads nothing."""
    from docker.errors import APIError

    client = connect(REGISTRY_TIMEOUT_S)
    try:
        client.api.inspect_distribution(name)
        return ""
    except APIError as error:
        return _first_line(error.explanation or str(error))
    except OSError:
        return f"its registry does not answer within {REGISTRY_TIMEOUT_S:g} s"
    finally:
        client.close()


def gpus(client: DockerClient) -> tuple[bool, str]:
    """Return whether the engine can give a container the machine's NVIDIA GPUs, and what it was found to offer."""
    with told("asking what the engine offers"):
        facts = client.info()
    runtimes = sorted(name for name in facts.get("Runtimes") or {} if not name.startswith("io.containerd"))
    devices = [device["ID"] for device in facts.get("DiscoveredDevices") or [] if "nvidia.com/gpu" in device["ID"]]
    offers = f"runtimes: {', '.join(runtimes) or 'none'}; devices: {', '.join(devices) or 'none'}"
    return "nvidia" in runtimes or bool(devices), offers


@contextmanager
def told(doing: str) -> Iterator[None]:
    """Turn the engine's refusals in the block, and its silence, into EnvironmentFault, told as met while `doing`."""
    from docker.errors import DockerException

    try:
        yield
    except DockerException as error:
        raise EnvironmentFault([explain(getattr(error, "explanation", None) or str(error), doing)]) from error
    except OSError as error:  # requests' errors are OSErrors: the connection to the engine is lost
        raise EnvironmentFault(f"the Docker engine stopped answering while {doing}", fix=START) from error


REFUSALS = (
    (r"no space left on device", "the disk of the Docker engine is full", "make room: `docker system prune`"),
    (
        r"[Cc]onflict.*container name \"?/?([^\" ]+)",
        r"the container name \1 is taken",
        "end that container, or declare another `name`",
    ),
    (
        r"(?:Bind for|exposing port TCP|listen tcp4?) ([\d.]+:\d+).*(?:already allocated|address already in use)",
        r"port \1 is taken",
        "end what holds it, or declare another port under serving.ports",
    ),
    (
        r"could not select device driver|nvidia-container-cli|unresolvable CDI devices",
        "the Docker engine cannot give the container a GPU",
        "install nvidia-container-toolkit and run `nvidia-ctk runtime configure`, or declare serving.gpu: none",
    ),
    (
        r"sysctl (?:key )?['\"]?([\w.]+)|/proc/sys/([\w/]+)",
        r"the kernel setting \1\2 cannot be set for a container here",
        "take it out of serving.container.sysctls",
    ),
    (
        r"[Mm]inimum memory limit allowed is (\w+)",
        r"serving.container.memory is less than the engine's least, \1",
        "raise it",
    ),
)
"""(what an engine says, what that means, what to do), in the order in which they are tried."""


def explain(said: str, doing: str) -> Problem:
    """Return what the user is told for an engine's refusal."""
    for pattern, what, fix in REFUSALS:
        if found := re.search(pattern, said):
            return Problem(found.expand(what) if found.re.groups else what, fix=fix)
    return Problem(f"the Docker engine refused, while {doing}: {_first_line(said)}")


def _reach(place: str) -> None:
    """Try the engine's socket. Raises EnvironmentFault; returns where something listens."""
    parts = urlsplit(place)
    try:
        if parts.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(CONNECT_TIMEOUT_S)
                probe.connect(parts.path)
        elif parts.hostname in LOCAL_HOSTS:
            socket.create_connection((parts.hostname, parts.port or 2375), CONNECT_TIMEOUT_S).close()
        else:
            raise EnvironmentFault(
                f"the Docker engine at {place} is on another machine, and so would the server's ports be",
                fix="point DOCKER_HOST or the docker context to an engine of this machine",
            )
    except PermissionError:
        raise EnvironmentFault(
            f"no permission to use the Docker engine at {place}",
            fix="join its group: `sudo usermod -aG docker $USER`, then log in again",
        ) from None
    except OSError:
        raise EnvironmentFault(f"no Docker engine answers at {place}", fix=START) from None


def _tls(place: str) -> Any:
    if not os.environ.get("DOCKER_TLS_VERIFY") or place.startswith("unix:"):
        return False
    from docker.utils import kwargs_from_env

    return kwargs_from_env().get("tls", False)


def _silent(place: str) -> EnvironmentFault:
    return EnvironmentFault(f"something listens at {place} and does not answer as a Docker engine does", fix=START)


def _too_old(place: str, detail: str) -> EnvironmentFault:
    oldest = ".".join(map(str, OLDEST_API))
    return EnvironmentFault(
        f"the Docker engine at {place} is too old: {_first_line(detail)}; API {oldest} is needed",
        fix="take Docker 19.03 or newer",
    )


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else "no reason given"
