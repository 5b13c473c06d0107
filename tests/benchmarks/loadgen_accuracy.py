"""Whether the load generator's figures are true: latencies known by construction, and MLPerf LoadGen beside it.

    python -m tests.benchmarks.loadgen_accuracy            # about two and a half minutes
    python -m tests.benchmarks.loadgen_accuracy --skip-mlperf

The servers of `fixed_servers` answer at moments that follow from when a request comes. The schedule is seeded, so that
for each run the latency of every request is known before: what is compared is the same requests, with no chance left.
A figure holds when it is within 5 % or 0.5 ms of the truth. A closed loop against the stall shows what it would hide.
Where the machine allows it, generator and server are scheduled ahead of the rest, each on its core, and the cores are
kept awake, so that the figures speak of the generator and not of its neighbours; `late` is by how much the server
itself kept its word too late.

MLPerf LoadGen (server scenario) sends its own Poisson schedule to the queue; the times at which it did are then
replayed as a trace by the load generator, so that both measure the same arrivals. The p99s should be within 10 %.
"""

from __future__ import annotations

import argparse
import json
import queue
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from launchpad import runfolder
from launchpad.layout import Layout
from launchpad.loadtest import generator
from launchpad.loadtest.arrivals import constant_rate, evenly, poisson
from launchpad.loadtest.connections import RestConnection
from launchpad.spec import ClosedLoop, OpenLoop, Profile
from tests.benchmarks import loadgen_setting as setting
from tests.benchmarks.fixed_servers import HTTP_ANSWER, LATENESS
from tests.benchmarks.loadgen_setting import PATH, REST_BODY

PERCENTILES = (50.0, 99.0, 99.9)
FIGURES = (*(f"p{p:g}" for p in PERCENTILES), "max")
NEAR_SHARE, NEAR_MS = 0.05, 0.5
LOADGEN = "mlcommons-loadgen==6.0.17"

DELAY_S = 0.005
STALL_PERIOD_S, STALL_S = 10.0, 0.5
SERVICE_S, RATE_RPS, QUEUE_S = 0.002, 300.0, 25.0

Row = dict[str, Any]


def lindley(arrivals_s: np.ndarray, service_s: float) -> np.ndarray:
    """Return the response times in s of a single server with deterministic service (Lindley, 1952)."""
    times, free = np.empty_like(arrivals_s), -np.inf
    for index, arrival in enumerate(arrivals_s):
        free = max(arrival, free) + service_s
        times[index] = free - arrival
    return times


def stationary_md1(rate_rps: float, service_s: float, percentile: float) -> float:
    """Return a percentile in s of the response time of M/D/1 in the long run, by simulating two million arrivals."""
    gaps = np.random.default_rng(1).exponential(1 / rate_rps, 2_000_000)
    return float(np.percentile(lindley(np.cumsum(gaps), service_s), percentile))


def stalled(arrivals_s: np.ndarray) -> np.ndarray:
    """Return response times in s with the period beginning at 0; over whole periods the phase changes little."""
    left = STALL_PERIOD_S - arrivals_s % STALL_PERIOD_S
    return np.where(left <= STALL_S, left, 0.0)


def percentiles_ms(times_s: np.ndarray) -> list[float]:
    return [float(np.percentile(times_s, p, method="higher")) * 1000 for p in PERCENTILES] + [times_s.max() * 1000]


def run(layout: Layout, profile: Profile) -> tuple[list[float], dict[str, Any]]:
    """Put a profile's load on the declared server. Return p50, p99, p99.9, max of the response time in ms, and more."""
    ending = generator.Ending()
    setting.go_first()

    def leave_the_core(_: dict[str, Any]) -> bool:
        setting.step_back()  # what the parent does with each second must not hold up the generator
        return True

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generator.drive(layout, lambda: "", profile, 1, folder, ending, leave_the_core)
        if ending.status != "completed" or runfolder.read_errors(folder):
            raise SystemExit(f"the run failed: {ending.why} {(folder / generator.LOG).read_text()}")
        whole, lag = runfolder.histogram(), runfolder.histogram()
        for kind, into in ((runfolder.RESPONSE, whole), (runfolder.LAG, lag)):
            for _, _, histogram in runfolder.read_histograms(folder, kind):
                into.add(histogram)
    reported = [whole.get_value_at_percentile(p) / 1000 for p in (*PERCENTILES, 100)]
    lag_ms = lag.get_value_at_percentile(99) / 1000 if lag.get_total_count() else None
    return reported, {"requests": whole.get_total_count(), "send_lag_p99_ms": lag_ms}


def lateness(port: int) -> list[float]:
    """Return by how many ms the server answered later than it should have, at each percentile."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{LATENESS.decode()}", timeout=10) as answer:
        return json.load(answer)


def rows(name: str, truth: list[float], reported: list[float], more: dict[str, Any], judged: bool = True) -> list[Row]:
    return [
        {
            "server": name,
            "figure": figure,
            "truth_ms": round(true, 3),
            "reported_ms": round(given, 3),
            "holds": (abs(given - true) <= max(NEAR_SHARE * true, NEAR_MS)) if judged and figure != "max" else None,
            **more,
        }
        for figure, true, given in zip(FIGURES, truth, reported, strict=True)
    ]


def open_loop(rate_rps: float, duration_s: float, arrivals: str = "poisson") -> OpenLoop:
    return OpenLoop(loop="open", rate_rps=rate_rps, duration_s=duration_s, arrivals=arrivals, seed=3)


def of_delay(folder: Path) -> list[Row]:
    with setting.fixed_server("delay", str(DELAY_S)) as port:
        reported, more = run(setting.checkout(folder, port, 1), open_loop(500, 16))
        more["late_ms"] = lateness(port)
    return rows("fixed delay of 5 ms", [DELAY_S * 1000] * 4, reported, more)


def of_stall(folder: Path) -> list[Row]:
    rate = 500.0
    due = evenly(constant_rate(rate, STALL_PERIOD_S))
    with setting.fixed_server("stall", str(STALL_PERIOD_S), str(STALL_S)) as port:
        layout = setting.checkout(folder, port, 1)
        truth = percentiles_ms(stalled(due))
        reported, more = run(layout, open_loop(rate, STALL_PERIOD_S, "constant"))
        more["late_ms"] = lateness(port)
        found = rows("stall of 500 ms every 10 s", truth, reported, more)
        # 8 users with a think time make about the same rate while nothing stalls
        profile = ClosedLoop(users=8, think_time_ms=8 / rate * 1000, duration_s=STALL_PERIOD_S)
        reported, more = run(layout, profile)
        return found + rows("the same stall, closed loop", truth, reported, more, judged=False)


def of_queue(folder: Path) -> list[Row]:
    with setting.fixed_server("queue", str(SERVICE_S)) as port:
        profile = open_loop(RATE_RPS, QUEUE_S)
        reported, more = run(setting.checkout(folder, port, 1), profile)
        more["late_ms"] = lateness(port)
    times = lindley(poisson(constant_rate(RATE_RPS, QUEUE_S), profile.seed), SERVICE_S)
    more["stationary_ms"] = [round(stationary_md1(RATE_RPS, SERVICE_S, p) * 1000, 3) for p in PERCENTILES]
    return rows("M/D/1, 2 ms, 60 % busy", percentiles_ms(times), reported, more)


# --- beside MLPerf LoadGen ----------------------------------------------------------------------------------------


def of_loadgen(folder: Path) -> list[Row]:
    """LoadGen's server scenario first, then the same arrivals replayed."""
    packages, trace = folder / "packages", folder / "trace.txt"
    setting.install(packages, LOADGEN)
    with setting.fixed_server("queue", str(SERVICE_S)) as port:
        command = [*setting.pinned(0), sys.executable, "-m", "tests.benchmarks.loadgen_accuracy", "mlperf"]
        environment = setting.environment(PYTHONPATH=f"{setting.ROOT}:{packages}")
        subprocess.run(
            [*command, str(port), str(folder)], cwd=setting.ROOT, env=environment, check=True, timeout=90, stdout=2
        )
        late = {"late_ms": lateness(port)}
        theirs = _summary((folder / "mlperf_log_summary.txt").read_text())
        layout = setting.checkout(folder, port, 1)
        reported, more = run(layout, open_loop(RATE_RPS, QUEUE_S + 10, str(trace)))
        more["late_ms"] = lateness(port)
    times = np.loadtxt(trace)
    truth = percentiles_ms(lindley(times, SERVICE_S))
    more["requests_of_loadgen"] = len(times)
    found = rows("LoadGen's arrivals, by LoadGen", truth, theirs, late) + rows(
        "the same, replayed", truth, reported, more
    )
    p99 = FIGURES.index("p99")
    found[len(FIGURES) + p99]["of_loadgen"] = round(reported[p99] / theirs[p99], 3)
    return found


def _summary(text: str) -> list[float]:
    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)}\s*:\s*(\d+)", text, re.MULTILINE)
        if not found:
            raise SystemExit(f"LoadGen's summary has no {name!r}:\n{text}")
        return int(found[1]) / 1e6

    return [value(f"{p:.2f} percentile latency (ns)") for p in PERCENTILES] + [value("Max latency (ns)")]


def mlperf(port: int, folder: Path) -> None:
    """Run LoadGen's server scenario against a port; leave its logs and the times of its queries in a folder."""
    import mlperf_loadgen as lg

    sent: list[int] = []
    client = _Client(port, lambda query: lg.QuerySamplesComplete([lg.QuerySampleResponse(query, 0, 0)]))

    def issue(samples: list[Any]) -> None:
        for sample in samples:
            sent.append(time.perf_counter_ns())
            client.send(sample.id)

    settings = lg.TestSettings()
    settings.scenario, settings.mode = lg.TestScenario.Server, lg.TestMode.PerformanceOnly
    settings.server_target_qps, settings.server_target_latency_ns = RATE_RPS, 100_000_000
    settings.min_duration_ms, settings.max_duration_ms = int(QUEUE_S * 1000), int(QUEUE_S * 1000) + 5000
    settings.min_query_count, settings.max_query_count = 1, int(RATE_RPS * QUEUE_S)
    settings.server_coalesce_queries = False
    output, logs = lg.LogOutputSettings(), lg.LogSettings()
    output.outdir, output.copy_summary_to_stdout = str(folder), False
    logs.log_output, logs.enable_trace = output, False
    system = lg.ConstructSUT(issue, lambda: None)
    samples = lg.ConstructQSL(1, 1, lambda _: None, lambda _: None)
    lg.StartTestWithLogSettings(system, samples, settings, logs)
    lg.DestroyQSL(samples)
    lg.DestroySUT(system)
    (folder / "trace.txt").write_text("".join(f"{moment / 1e9:.9f}\n" for moment in sent))


class _Client:
    """Sends from the caller's thread on an idle connection, and tells of answers from a thread of its own."""

    def __init__(self, port: int, answered: Callable[[int], None]) -> None:
        self._port = port
        self._answered = answered
        self._idle: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._asked: dict[int, tuple[socket.socket, int]] = {}
        self._poll = select.epoll()
        self._wire = RestConnection.request(f"127.0.0.1:{port}", PATH, REST_BODY)
        for _ in range(64):
            self._idle.put(self._connect())
        threading.Thread(target=self._receive, daemon=True).start()

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poll.register(connection, select.EPOLLIN)
        return connection

    def send(self, query: int) -> None:
        connection = self._connect() if self._idle.empty() else self._idle.get()
        self._asked[connection.fileno()] = connection, query
        connection.sendall(self._wire)

    def _receive(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                connection, query = self._asked.pop(descriptor)
                left = len(HTTP_ANSWER)
                while left:
                    part = connection.recv(left)
                    if not part:
                        raise SystemExit("the server closed a connection of LoadGen's client")
                    left -= len(part)
                self._idle.put(connection)
                self._answered(query)


def _line(row: Row) -> str:
    holds = {None: "", True: "yes", False: "NO"}[row["holds"]]
    ratio = f"   {row['of_loadgen']:.3f} of LoadGen's" if "of_loadgen" in row else ""
    late = dict(zip(FIGURES, row.get("late_ms", []), strict=False)).get(row["figure"])
    return (
        f"{row['server']:32}{row['figure']:>8}{row['truth_ms']:11.3f}{row['reported_ms']:13.3f}"
        f"{'' if late is None else f'{late:.3f}':>9}   {holds}{ratio}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--skip-mlperf", action="store_true", help="not beside MLPerf LoadGen, which is fetched for it")
    options = parser.parse_args()
    parts = [of_delay, of_stall, of_queue] + ([] if options.skip_mlperf else [of_loadgen])
    first = setting.go_first()
    found: list[Row] = []
    print(f"{'server':32}{'figure':>8}{'truth ms':>11}{'reported ms':>13}{'late ms':>9}   holds")
    for part in parts:
        with tempfile.TemporaryDirectory() as name, setting.awake():
            for row in part(Path(name)):
                found.append(row)
                print(_line(row), flush=True)
    how = {"within": f"{NEAR_SHARE:.0%} or {NEAR_MS} ms", "loadgen": LOADGEN, "scheduled_ahead": first}
    if not options.skip_mlperf:
        setting.keep("loadgen_accuracy", how, found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["mlperf"]:
        mlperf(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
