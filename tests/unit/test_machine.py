"""What a process used, as the kernel counts it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from launchpad import machine

WORK = """
import sys, time
held = bytearray(64 << 20)
end = time.process_time() + 0.3
while time.process_time() < end:
    pass
"""


def test_processor_time_and_peak_memory_of_a_process_and_its_children_are_known():
    child = subprocess.Popen([sys.executable, "-c", WORK + "print(flush=True); sys.stdin.read()"], stdin=-1, stdout=-1)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        used = machine.usage(child.pid)
        own = machine.usage(os.getpid())
        assert used is not None and own is not None
        assert used.cpu_s >= 0.3 and used.peak_mib > 64
        assert own.peak_mib > used.peak_mib and own.cpu_s > used.cpu_s
    finally:
        child.communicate()


def test_memory_that_was_given_back_still_counts():
    freed = WORK + "del held; time.sleep(0.1); print(flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", freed], stdin=-1, stdout=-1)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        used = machine.usage(child.pid)
        assert used is not None and used.peak_mib > 64
    finally:
        child.communicate()


def test_nothing_is_known_of_a_process_that_is_gone():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    time.sleep(0.01)
    assert machine.usage(child.pid) is None
