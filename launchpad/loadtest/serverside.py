"""What the server itself says of a run, kept in the run folder as `server.json`: its metrics over the run, and the
processor, memory and GPU of its processes by second.

The metrics page is read before and after, never in between: what is measured shall not answer questions meanwhile.
"""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

from launchpad import files, metrics
from launchpad.client import RestClient, ServerError
from launchpad.resources import Resources
from launchpad.runfolder import SERVER
from launchpad.server import Server


class Watch:
    """Watches a server from when it is made. `see` at every second of the run; `keep` at its end."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._resources = Resources(server)
        self._began = ""
        self._use: list[tuple[int, float | None, float, float | None, float | None]] = []
        self._last: tuple[float, float] | None = None
        self._trouble = "" if server.rest_url and server.metrics_path else "the server has no metrics page"
        self._before = self._snapshot()

    def see(self, second: int) -> None:
        """Note what the server's processes use; more than once in a second counts once."""
        self._began = self._began or _moment(time.time() - 1)
        if self._use and self._use[-1][0] >= second:
            return
        now, used = time.monotonic(), self._resources.read()
        if used.cpu_s is None or used.memory_mib is None:
            return
        cores = None
        if self._last and now > self._last[0]:
            cores = round((used.cpu_s - self._last[1]) / (now - self._last[0]), 3)
        self._last = now, used.cpu_s
        self._use.append((second, cores, round(used.memory_mib, 1), used.gpu, used.gpu_memory_mib))

    def keep(self, folder: Path) -> None:
        """Write `server.json`. What could not be had is left out and named in `trouble`."""
        after = self._snapshot()
        document: dict[str, Any] = {"began": self._began, "use": self._use}
        if self._before and after:
            try:
                document |= _figures(metrics.between(self._before, after))
            except ValueError as error:
                self._trouble = str(error)
        files.write_json(folder / SERVER, document | {"trouble": self._trouble})

    def _snapshot(self) -> metrics.Snapshot | None:
        if self._trouble:
            return None
        client = RestClient(str(self._server.rest_url), timeout_s=5)
        try:
            return metrics.parse(client.metrics(str(self._server.metrics_path)), time.monotonic())
        except (ServerError, ValueError) as error:
            self._trouble = f"its metrics page: {error}"
            return None


def _figures(seen: metrics.Interval) -> dict[str, Any]:
    """Return the metrics of a run: means in ms of each answered request, and how batches were filled."""
    total = seen.total
    return {
        "restarted": seen.restarted,
        "answered": total.answered,
        "failed": total.failed,
        "refused": total.refused,
        "latency_mean_ms": _ms(total.latency.mean),
        "runtime_mean_ms": _ms(total.runtime.mean),
        "queued": seen.queueing.count,
        "queueing_mean_ms": _ms(seen.queueing.mean),
        "queueing_p99_ms": _ms(seen.queueing.quantile(0.99)),
        "batches": {
            "bounds": [bound for bound in seen.batch_size.bounds[:-1]],
            "counts": _each(seen.batch_size.counts),
            "mean": seen.batch_size.mean,
        },
        "padding": seen.padding,
    }


def _each(cumulative: tuple[int, ...]) -> list[int]:
    return [count - below for count, below in zip(cumulative, (0, *cumulative[:-1]), strict=True)]


def _ms(micros: float | None) -> float | None:
    return None if micros is None else round(micros / 1000, 4)


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds")
