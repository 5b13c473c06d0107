"""A tab of exact latencies on Locust's web page: percentiles of every request so far, service time and send lag."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import gevent
from flask import Response, request
from hdrh.histogram import HdrHistogram
from locust.env import Environment

from launchpad.loadtest.latencies import add_to, unpacked
from launchpad.runfolder import LAG, RESPONSE, SERVICE, histogram

KEY = "latency"
COLUMNS = {
    "name": "Requests",
    "answered": "# Right",
    "failed": "# Failed",
    "p50": "p50 (ms)",
    "p95": "p95 (ms)",
    "p99": "p99 (ms)",
    "p999": "p99.9 (ms)",
    "max": "max (ms)",
    "service": "service p99 (ms)",
    "lag": "send lag p99 (ms)",
}


class LatencyTab:
    """Adds up what recorders hand over, and shows it beside Locust's own tables."""

    def __init__(self, environment: Environment) -> None:
        self.reset()
        assert environment.web_ui is not None and environment.web_ui.app is not None
        structure = [{"key": key, "title": title} for key, title in COLUMNS.items()]
        environment.web_ui.template_args.update(
            extended_tabs=[{"title": "Latency", "key": KEY}],
            extended_tables=[{"key": KEY, "structure": structure}],
        )
        environment.web_ui.app.after_request(self._extend)

    def reset(self) -> None:
        """Forget what was counted, as a new test begins."""
        self._lines: dict[str, dict[str, HdrHistogram]] = defaultdict(lambda: defaultdict(histogram))
        self._counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def add(self, lines: dict[str, Any]) -> None:
        """Add a process's second."""
        for name, part in lines.items():
            self._counts[name][0] += part["answered"]
            self._counts[name][1] += sum(many for _, _, many in part["failures"])
            for kind, latencies in part["latencies"].items():
                add_to(self._lines[name][kind], unpacked(latencies))
            gevent.sleep(0)

    def rows(self) -> list[dict[str, Any]]:
        """Return the table's rows; a latency that is not known is a dash."""
        rows = []
        for name, (answered, failed) in sorted(self._counts.items()):
            if not answered + failed:
                continue
            kinds = self._lines[name]
            response = {
                key: _at(kinds, RESPONSE, p) for key, p in (("p50", 50), ("p95", 95), ("p99", 99), ("p999", 99.9))
            }
            rest = {"max": _at(kinds, RESPONSE, 100), "service": _at(kinds, SERVICE, 99), "lag": _at(kinds, LAG, 99)}
            rows.append({"name": name, "safe_name": name, "answered": answered, "failed": failed, **response, **rest})
        return rows

    def _extend(self, response: Response) -> Response:
        if request.path == "/stats/requests":
            extended = {"extended_stats": [{"key": KEY, "data": self.rows()}]}
            response.set_data(json.dumps({**(response.get_json() or {}), **extended}))
        return response


def _at(kinds: dict[str, HdrHistogram], kind: str, percentile: float) -> str:
    known = kinds.get(kind)
    return f"{known.get_value_at_percentile(percentile) / 1000:.2f}" if known and known.get_total_count() else "–"
