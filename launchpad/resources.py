"""What a server takes of its machine: processor time, memory, and the GPUs where there are any."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from typing import Any

import psutil

from launchpad import engine
from launchpad.errors import EnvironmentFault
from launchpad.server import Server

MIB = 2**20
FAMILY_S = 10.0
"""How often the processes that a server started are looked for, which means a look at all that there are."""


@dataclass(frozen=True)
class Reading:
    """cpu_s: processor time that the server has used since its start. gpu: share of the busiest GPU's time.

    gpu_memory_mib: of all GPUs. What cannot be known is None.
    """

    cpu_s: float | None = None
    memory_mib: float | None = None
    gpu: float | None = None
    gpu_memory_mib: float | None = None


class Resources:
    """Reads what a server takes; keeps what it has open between readings."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._docker: Any = None
        self._family: list[psutil.Process] = []
        self._family_at = -math.inf
        self._gpus = _gpus()

    def read(self) -> Reading:
        cpu_s, memory_mib = self._of_container() if self._server.container else self._of_process()
        return Reading(cpu_s, memory_mib, *_gpu_load(self._gpus))

    def _of_process(self) -> tuple[float | None, float | None]:
        """Return processor seconds and resident MiB of the server's process and those that it started."""
        try:
            process = psutil.Process(self._server.pid)
            if abs(process.create_time() - self._server.created) > 1:
                return None, None  # another process has the number now
            if time.monotonic() > self._family_at + FAMILY_S:
                self._family, self._family_at = [process, *process.children(recursive=True)], time.monotonic()
        except psutil.Error:
            return None, None
        cpu_s = memory = 0.0
        for member in self._family:
            with contextlib.suppress(psutil.Error):
                times = member.cpu_times()
                cpu_s += times.user + times.system
                memory += member.memory_info().rss
        return cpu_s, memory / MIB

    def _of_container(self) -> tuple[float | None, float | None]:
        """Return processor seconds and MiB in use, the page cache left out, as `docker stats` counts them."""
        try:
            self._docker = self._docker or engine.connect(engine.ANSWER_TIMEOUT_S)
            with engine.told("asking for the container's use"):
                stats = self._docker.api.stats(self._server.container, stream=False, one_shot=True)
        except EnvironmentFault:
            self._docker = None
            return None, None
        return of_stats(stats)


def of_stats(stats: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return processor seconds and MiB of the engine's statistics; None for what a container that ended has not."""
    cpu_ns = stats.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage")
    memory = stats.get("memory_stats", {})
    cache = memory.get("stats", {}).get("inactive_file", memory.get("stats", {}).get("total_inactive_file", 0))
    used = memory.get("usage")
    return (cpu_ns / 1e9 if cpu_ns is not None else None), ((used - cache) / MIB if used is not None else None)


def _gpus() -> list[Any]:
    """Return the machine's NVIDIA GPUs; none where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _gpu_load(gpus: list[Any]) -> tuple[float | None, float | None]:
    import pynvml

    try:
        busy = [pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100 for gpu in gpus]
        used = [pynvml.nvmlDeviceGetMemoryInfo(gpu).used / MIB for gpu in gpus]
    except pynvml.NVMLError:
        return None, None
    return (max(busy), sum(used)) if gpus else (None, None)
