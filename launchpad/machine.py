"""The machine that a figure was measured on: no figure is worth anything without it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import psutil


def describe() -> dict[str, str | int | float]:
    """Return processor, usable cores, memory in GiB, system, and the versions of Python and TensorFlow."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "tensorflow": importlib.metadata.version("tensorflow"),
    }


@dataclass(frozen=True)
class Usage:
    """What a process and its children used: processor time so far in seconds, and the most memory at once in MiB."""

    cpu_s: float
    peak_mib: float


def usage(pid: int) -> Usage | None:
    """Return what a process used; None where it has ended or may not be looked at."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
        seconds = sum(times.user + times.system for times in (process.cpu_times() for process in family))
        return Usage(seconds, sum(_peak_kib(process.pid) for process in family) / 1024)
    except (psutil.Error, OSError):
        return None


def _peak_kib(pid: int) -> int:
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()
