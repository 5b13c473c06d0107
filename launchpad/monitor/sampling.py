"""A sample: what happened since the look before, as rows of the store's table `samples`.

Lengths of time come from the monotonic clock, moments from the wall clock: one that jumps moves a sample, not a rate.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from launchpad import metrics
from launchpad.client import RestClient, ServerError
from launchpad.declaration import Declaration
from launchpad.layout import Layout
from launchpad.metrics import Interval, Snapshot
from launchpad.resources import Reading, Resources
from launchpad.server import Server

TIMEOUT_S = 5.0

Row = dict[str, Any]


@dataclass
class Watched:
    """A start of the server, and what was last seen of it."""

    server: Server
    client: RestClient
    resources: Resources
    snapshot: Snapshot | None = None
    reading: Reading | None = None
    read_s: float = 0.0


class Sampler:
    """Looks at the launched server, whichever it is at the moment."""

    def __init__(
        self,
        declared: Declaration,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._layout = Layout(declared.root)
        self._objective_ms = declared.pipeline.objectives.p99_ms
        self._clock, self._wall_clock = clock, wall_clock
        self._watched: Watched | None = None

    def sample(self) -> list[Row] | None:
        """Return a row for the whole server and one for each of its models; None where no server is launched.

        The first look at a server gives no figures, for there is nothing yet that it could be the difference of. A look
        that finds no whole page says so, and the next one covers its time too.
        """
        watched = self._current()
        if watched is None:
            return None
        row = self._of_machine(watched)
        try:
            page = watched.client.metrics(str(watched.server.metrics_path))
            snapshot = metrics.parse(page, self._clock())
            interval = metrics.between(watched.snapshot, snapshot) if watched.snapshot else None
        except ServerError as error:
            return [row | {"trouble": f"the server does not answer: {error.kind}"}]
        except ValueError as error:
            return [row | {"trouble": str(error)[:200]}]
        watched.snapshot = snapshot
        return self._rows(row, interval, watched.server) if interval else [row]

    def _current(self) -> Watched | None:
        server = Server.load(self._layout)
        if server is None or server.rest_url is None or server.metrics_path is None:
            self._watched = None
        elif self._watched is None or self._watched.server.instance != server.instance:
            self._watched = Watched(server, RestClient(server.rest_url, TIMEOUT_S), Resources(server))
        return self._watched

    def _of_machine(self, watched: Watched) -> Row:
        """Return the part of the server's row that its machine knows."""
        now_s, reading, before = self._clock(), watched.resources.read(), watched.reading
        cpu = None
        if before and before.cpu_s is not None and reading.cpu_s is not None and now_s > watched.read_s:
            cpu = max(0.0, (reading.cpu_s - before.cpu_s) / (now_s - watched.read_s))
        watched.reading, watched.read_s = reading, now_s
        found = {"cpu": cpu, "memory_mib": reading.memory_mib, "gpu": reading.gpu}
        return {**_empty(self._wall_clock(), watched.server), **found, "gpu_memory_mib": reading.gpu_memory_mib}

    def _rows(self, whole: Row, interval: Interval, server: Server) -> list[Row]:
        whole |= of_requests(interval.total) | of_batches(interval)
        whole |= {"seconds": interval.seconds, "trouble": "restarted" if interval.restarted else ""}
        rows = [whole]
        for model in server.models:
            row = _empty(whole["at"], server) | {"model": model, "seconds": interval.seconds}
            rows.append(row | of_requests(interval.of(model)) | {"objective_p99_ms": self._objective_ms})
        return rows


def of_requests(requests: metrics.Requests) -> Row:
    """Return the figures of requests, latencies in ms."""
    return {
        "answered": requests.answered,
        "failed": requests.failed,
        "refused": requests.refused,
        "rate_rps": requests.rate_rps,
        "mean_ms": _ms(requests.latency.mean),
        **{f"p{percent}_ms": requests.latency_ms(percent / 100) for percent in (50, 95, 99)},
        "runtime_mean_ms": _ms(requests.runtime.mean),
    }


def of_batches(interval: Interval) -> Row:
    """Return the figures of batching, over all models: the server does not tell them apart."""
    return {
        "batches": interval.batch_size.count,
        "batch_size": interval.batch_size.mean,
        "queueing_mean_ms": _ms(interval.queueing.mean),
        "queueing_p99_ms": _ms(interval.queueing.quantile(0.99)),
    }


def _ms(micros: float | None) -> float | None:
    return None if micros is None else micros / 1000


def _empty(at: datetime.datetime, server: Server) -> Row:
    from launchpad.store.schema import Sample

    nothing = dict.fromkeys(column.name for column in Sample.__table__.columns if column.name != "id")
    return {**nothing, "at": at, "instance": server.instance, "model": "", "trouble": ""}
