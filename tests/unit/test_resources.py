"""What a server takes of its machine."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from launchpad.resources import MIB, Resources
from launchpad.server import Server


def server(pid: int, created: float) -> Server:
    return Server("i", "embedded", "", "", [], 8501, 8500, "/metrics", ["m"], pid, created)


def test_processor_time_and_memory_are_those_of_the_process_and_grow_with_its_work():
    me = psutil.Process()
    resources = Resources(server(me.pid, me.create_time()))
    before = resources.read()
    sum(number * number for number in range(2_000_000))
    after = resources.read()
    assert after.cpu_s > before.cpu_s > 0 and 10 < after.memory_mib < 100_000


def test_a_process_that_the_server_started_counts_when_it_is_looked_for_again(monkeypatch):
    me = psutil.Process()
    resources = Resources(server(me.pid, me.create_time()))
    alone = resources.read().memory_mib
    program = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        monkeypatch.setattr("launchpad.resources.FAMILY_S", 0.0)
        both = resources.read().memory_mib
        child.stdin.close()
    assert both > alone + 1


def test_another_process_with_the_servers_number_is_not_taken_for_it():
    me = psutil.Process()
    assert Resources(server(me.pid, me.create_time() - 100)).read().memory_mib is None


def test_of_several_gpus_the_busiest_and_all_the_memory_count(monkeypatch):
    """The machine's driver is stood in for: a GPU is not everywhere."""
    loads = {"a": (30, 2), "b": (80, 3)}
    stands_in = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: len(loads),
        "nvmlDeviceGetHandleByIndex": list(loads).__getitem__,
        "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=loads[gpu][0]),
        "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(used=loads[gpu][1] * MIB),
    }
    for name, function in stands_in.items():
        monkeypatch.setattr(pynvml, name, function)
    reading = Resources(server(1, 0.0)).read()
    assert (reading.gpu, reading.gpu_memory_mib) == (0.8, 5)


def test_without_a_driver_a_gpu_is_not_known(monkeypatch):
    def fails() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fails)
    reading = Resources(server(1, 0.0)).read()
    assert (reading.gpu, reading.gpu_memory_mib) == (None, None)


def test_readings_of_a_process_that_ended_are_unknown():
    gone = psutil.Popen(["true"])
    created = gone.create_time()
    gone.wait()
    assert Resources(server(gone.pid, created)).read().cpu_s is None
    with pytest.raises(psutil.Error):
        psutil.Process(gone.pid)
