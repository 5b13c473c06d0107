"""Begins and ends the measuring of a Locust run, and carries what recorders kept to whoever keeps it for good.

With workers, theirs come to the master by Locust's own messages, on this host or on others. Locust's statistics, where
someone looks at them, are fed in bulk, once a second, not request by request.
"""

from __future__ import annotations

import gc
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event
import numpy as np
import orjson
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner
from locust.stats import StatsEntry, StatsError, bucket_response_time

from launchpad.loadtest.latencies import unpacked
from launchpad.loadtest.recorder import Recorder
from launchpad.runfolder import FAILED, RESPONSE

BEGIN, END, SECOND = "launchpad_begin", "launchpad_end", "launchpad_second"
SHORT_S = 0.5
"""Part of a second up to which it is counted with the second before."""
DRAIN_S = 5.0
"""How long answers are waited for when no request is begun any more; what is open then counts as failed."""
GRACE_S = 5.0
"""How long the master waits for the last seconds of its workers."""


class Conductor:
    """One in each process of a run. `begun` is set while requests are to be counted.

    keep: takes what each process handed over, in the process that runs alone or is the master. feeds: whether someone
    looks at Locust's own statistics.

    Users keep `under_way` ({connection: (line, due_ns)}) and `waiting` ((line, request, due_ns) for want of a
    connection) up to date, say with `scheduling` that a schedule has not been gone through, and begin no request while
    `closing` is set: so that no request that was due is left out of a run's figures.
    """

    def __init__(
        self, environment: Environment, recorder: Recorder, keep: Callable[[dict[str, Any]], None], feeds: bool
    ) -> None:
        self.recorder = recorder
        self._feeds = feeds
        self._keep = keep
        self.begun = gevent.event.Event()
        self.closing = False
        self.scheduling = False
        self.under_way: dict[Any, tuple[str, int]] = {}
        self.waiting: deque[tuple[Any, Any, int]] = deque()
        self._environment = environment
        self._runner: Any = environment.runner
        self._last: set[int] = set()
        self._over = False
        self._handed_over = gevent.event.Event()
        if isinstance(self._runner, WorkerRunner):
            self._runner.register_message(BEGIN, lambda **_: self.begin())
            self._runner.register_message(END, lambda msg, **_: gevent.spawn(self.end, msg.data))
        elif isinstance(self._runner, MasterRunner):
            self._runner.register_message(SECOND, lambda msg, **_: self._receive(msg.data))

    @property
    def worker(self) -> int:
        """Number of this process among those that generate load, from 0."""
        return max(0, self._runner.worker_index)

    def measure(self, duration_s: float) -> None:
        """Measure for a time from when all users have started, in this process or in all workers; then end Locust."""
        started = gevent.event.Event()
        self._environment.events.spawning_complete.add_listener(lambda **_: started.set())
        started.wait()
        self._environment.events.quitting.add_listener(lambda **_: self.end_everywhere())
        self.begin_everywhere()
        gevent.sleep(duration_s)
        self.end_everywhere(drain=True)
        self._runner.quit()

    def begin_everywhere(self) -> None:
        """Begin the measuring, in this process or in all workers."""
        self._over = False
        self._handed_over.clear()
        self._last.clear()
        self._everywhere(BEGIN, self.begin)

    def end_everywhere(self, drain: bool = False) -> None:
        """End the measuring, once; what is measured till then is handed over. drain: wait for what is under way.

        Who calls while another ends it waits until that is done: Locust quits then.
        """
        if self._over:
            self._handed_over.wait()
            return
        self._over = True
        try:
            self._everywhere(END, self.end, drain)
            if isinstance(self._runner, MasterRunner):
                self._await_last(GRACE_S + (DRAIN_S if drain else 0))
        finally:
            self._handed_over.set()

    def begin(self) -> None:
        """Count from now on. What is there by now stays for the run: the collector need not look at it again."""
        gc.collect()
        gc.freeze()
        self.recorder.take()
        self._clock = time.perf_counter(), time.process_time()
        self._second = 0
        self.closing = False
        self._ending = gevent.event.Event()
        self.begun.set()
        self._hand_over = gevent.spawn(self._hand_over_each_second)

    def end(self, drain: bool = False) -> None:
        """Count no more, and hand over what the last second held. drain: first wait for what is under way."""
        if self.begun.is_set():
            if drain:
                self._drain()
            self.begun.clear()
            self._ending.set()
            self._hand_over.join()
            if drain:
                self._give_up()
            self._deliver(last=True)

    def _drain(self) -> None:
        self.closing = True
        deadline = time.monotonic() + DRAIN_S
        while (self.under_way or self.waiting or self.scheduling) and time.monotonic() < deadline:
            gevent.sleep(0.001)

    def _give_up(self) -> None:
        """Count what is still open as failed."""
        open_still = [*self.under_way.values(), *((line.name, due_ns) for line, _, due_ns in self.waiting)]
        for name, due_ns in open_still:
            self.recorder.failed(name, "no answer: not by the end", "", due_ns, time.perf_counter_ns())

    def _everywhere(self, message: str, own: Callable[..., None], data: Any = None) -> None:
        if isinstance(self._runner, MasterRunner):
            self._runner.send_message(message, data)
        elif data is None:
            own()
        else:
            own(data)

    def _hand_over_each_second(self) -> None:
        begin = self._clock[0]
        while not self._ending.wait(max(0.0, begin + self._second + 1 - time.perf_counter())):
            self._deliver(last=False)
            self._second += 1

    def _deliver(self, last: bool) -> None:
        """Hand over the second that is ending; at the `last` the part of one, as its own or with the one before."""
        wall, processor = self._clock
        self._clock = time.perf_counter(), time.process_time()
        length_s = self._clock[0] - wall
        part: dict[str, Any] = {
            "worker": self.worker,
            "second": self._second - (1 if last and length_s < SHORT_S and self._second else 0),
            "length_s": length_s,
            "cpu": (self._clock[1] - processor) / length_s if length_s else 0.0,
            "last": last,
            "lines": self.recorder.take(),
        }
        gevent.sleep(0)  # requests that are due meanwhile go first, here and below
        if isinstance(self._runner, WorkerRunner):
            self._runner.send_message(SECOND, part)
        else:
            self._receive(part)
        if self._feeds:
            gevent.sleep(0)
            self._feed(part["lines"])

    def _receive(self, part: dict[str, Any]) -> None:
        if part["last"]:
            self._last.add(part["worker"])
        self._keep(part)

    def _await_last(self, longest_s: float) -> None:
        deadline = time.monotonic() + longest_s
        while len(self._last) < self._runner.worker_count and time.monotonic() < deadline:
            gevent.sleep(0.05)

    def _feed(self, lines: dict[str, Any]) -> None:
        """Add a second's counts to Locust's statistics."""
        stats = self._environment.stats
        for name, part in lines.items():
            entry = _as_stats(stats, name, part)
            if entry.num_requests:
                stats.get(name, "POST").extend(entry)
                stats.total.extend(entry)
            for kind, _, many in part["failures"]:
                error = stats.errors.setdefault(
                    StatsError.create_key("POST", name, kind), StatsError("POST", name, kind)
                )
                error.occurrences += many
            gevent.sleep(0)


def _as_stats(stats: Any, name: str, part: dict[str, Any]) -> StatsEntry:
    """Return a second of a line as one of Locust's entries; its latencies are in whole ms."""
    entry = StatsEntry(stats, name, "POST")
    failures = sum(many for _, _, many in part["failures"])
    now = time.time()
    kept = [unpacked(part["latencies"][kind]) for kind in (RESPONSE, FAILED) if kind in part["latencies"]]
    latencies_ms = np.concatenate([np.empty(0), *kept]) / 1000
    entry.num_requests, entry.num_failures, entry.last_request_timestamp = part["answered"] + failures, failures, now
    entry.num_reqs_per_sec[int(now)] = entry.num_requests
    entry.num_fail_per_sec[int(now)] = failures
    for value, many in zip(*np.unique(latencies_ms, return_counts=True), strict=True):
        entry.response_times[bucket_response_time(float(value))] += int(many)
    if len(latencies_ms):
        entry.total_response_time = float(latencies_ms.sum())  # type: ignore[assignment]
        entry.min_response_time = float(latencies_ms.min())  # type: ignore[assignment]
        entry.max_response_time = float(latencies_ms.max())  # type: ignore[assignment]
    return entry


def tell(part: dict[str, Any]) -> None:
    """Write a part to whoever started this process."""
    assert sys.__stdout__ is not None
    sys.__stdout__.buffer.write(orjson.dumps(part, option=orjson.OPT_APPEND_NEWLINE))
    sys.__stdout__.flush()
