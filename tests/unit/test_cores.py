"""Load generator and event loop are kept apart where there are cores to spare."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading

import pytest

from launchpad.loadtest import cores
from launchpad.modelserver.execution import Workers


@pytest.mark.parametrize(
    ("worker", "processes", "available", "own"),
    [
        (0, 1, {0, 1}, {1}),
        (0, 2, {2, 3, 5}, {5}),
        (1, 2, {2, 3, 5}, {3}),
        (0, 1, {0}, {0}),
        (1, 2, {0, 1}, {0, 1}),  # none to spare
        (-1, 1, {0, 1}, {0, 1}),
    ],
)
def test_each_process_of_the_generator_has_a_core_of_its_own(worker, processes, available, own):
    assert cores.of_generator(worker, processes, available) == own


@pytest.fixture
def loop(server_of):
    """A process that stands in for an embedded server."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield server_of(process.pid)
        process.kill()


@pytest.fixture
def server_of():
    from launchpad.server import Server

    def made(pid: int) -> Server:
        return Server("i", "embedded", "", "", [], 1, 1, None, [], pid=pid)

    return made


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_an_event_loop_keeps_off_the_generators_core_while_it_is_loaded(loop):
    everything = os.sched_getaffinity(0)
    with pytest.raises(KeyboardInterrupt), cores.apart(loop, 1):
        assert os.sched_getaffinity(loop.pid) == everything - {max(everything)}
        raise KeyboardInterrupt
    assert os.sched_getaffinity(loop.pid) == everything


@pytest.mark.parametrize("changes", [{"backend": "native"}, {"pid": 1 << 22}, {"pid": 0}])
def test_another_server_or_one_that_has_ended_is_let_be(loop, changes):
    with cores.apart(dataclasses.replace(loop, **changes), 1):
        assert os.sched_getaffinity(loop.pid) == os.sched_getaffinity(0)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_threads_that_the_loop_starts_meanwhile_use_all_cores():
    found: list[set[int]] = []
    everything = os.sched_getaffinity(0)

    def start() -> None:
        os.sched_setaffinity(0, {min(everything)})
        done = threading.Event()
        workers = Workers("test", 1)
        workers.submit(lambda: (found.append(os.sched_getaffinity(0)), done.set()))
        done.wait()
        workers.stop()

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert found == [everything]
