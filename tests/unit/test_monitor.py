"""The monitor: what it makes of the pages of a server that answers, starts again, goes away or is cut off."""

from __future__ import annotations

import datetime
import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from launchpad.errors import DeclarationError
from launchpad.layout import Layout
from launchpad.modelserver.metrics import Metrics
from launchpad.monitor.sampling import Sampler
from launchpad.monitor.screen import line
from launchpad.monitor.watch import KEEP_S, Keeper, watch
from launchpad.resources import Reading, of_stats
from launchpad.server import Server
from launchpad.spec import Monitor
from launchpad.store import limits

TEXT = """\
name: tiny
models:
  m: {{source: m.py:f}}
objectives: {{p99_ms: 50}}
store: {url}
"""


class Fake:
    """A server with nothing but a metrics page, and clocks that go as they are told."""

    def __init__(self) -> None:
        self.metrics = Metrics(batching=True)
        self.cut = False
        self.now_s = 1000.0
        self.wall = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = fake.metrics.page()
                body = (page[: len(page) // 2] if fake.cut else page).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *about: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def serve(self, *latencies_us: int, status: str = "OK") -> None:
        for latency_us in latencies_us:
            self.metrics.request_count.add("m", status)
            if status == "OK":
                self.metrics.request_latency.cell("m", "predict", "REST").add(latency_us)
                self.metrics.queuing_latency.cell("batch_threads").add(latency_us / 4)
                self.metrics.processed_batch_size.cell().add(2)

    def passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.wall += datetime.timedelta(seconds=seconds)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    yield made
    made.close()


@pytest.fixture
def declared(declare):
    return declare(TEXT.format(url="sqlite:///store.db"))


def record(declared, port: int, instance: str = "first") -> None:
    me = psutil.Process()
    server = Server(instance, "embedded", "", "", [], port, 0, "/metrics", ["m"], me.pid, me.create_time(), "", 1.0)
    server.save(Layout(declared.root))


@pytest.fixture
def sampler(fake, declared):
    record(declared, fake.port)
    return Sampler(declared, clock=lambda: fake.now_s, wall_clock=lambda: fake.wall)


def test_the_first_look_gives_no_figures_and_the_second_those_of_the_time_between(fake, sampler):
    fake.serve(*[90_000] * 100)
    (first,) = sampler.sample()
    assert first["model"] == "" and first["rate_rps"] is None and first["memory_mib"] > 1
    fake.serve(*[2_000] * 30)
    fake.serve(0, 0, status="UNAVAILABLE")
    fake.passes(10)
    whole, model = sampler.sample()
    assert (model["model"], model["rate_rps"], model["answered"], model["refused"]) == ("m", 3.0, 30, 2)
    assert 1 < model["p99_ms"] < 4 and model["objective_p99_ms"] == 50.0
    assert (whole["batches"], whole["batch_size"], whole["queueing_mean_ms"]) == (30, 2.0, pytest.approx(0.5, rel=0.1))
    fake.passes(1)
    assert [row["answered"] for row in sampler.sample()] == [0, 0]


def test_a_wall_clock_that_jumps_moves_a_sample_and_no_rate(fake, sampler):
    sampler.sample()
    fake.serve(*[1_000] * 20)
    fake.passes(2)
    fake.wall -= datetime.timedelta(days=400)
    whole, model = sampler.sample()
    assert model["rate_rps"] == 10.0 and whole["seconds"] == 2.0 and whole["at"].year == 2024


def test_a_server_that_counts_anew_says_it_restarted(fake, sampler):
    fake.serve(*[1_000] * 20)
    sampler.sample()
    fake.metrics = Metrics(batching=True)
    fake.serve(*[1_000] * 3)
    fake.passes(1)
    whole, model = sampler.sample()
    assert whole["trouble"] == "restarted" and model["answered"] == 3


def test_another_launch_is_another_server(fake, sampler, declared):
    fake.serve(*[1_000] * 20)
    sampler.sample()
    record(declared, fake.port, "second")
    fake.passes(1)
    (first,) = sampler.sample()
    assert first["instance"] == "second" and first["rate_rps"] is None


def test_a_page_cut_in_the_middle_gives_no_figures_and_the_next_whole_one_covers_its_time(fake, sampler):
    fake.serve(*[1_000] * 20)
    sampler.sample()
    fake.serve(*[1_000] * 20)
    fake.cut = True
    fake.passes(5)
    (cut,) = sampler.sample()
    assert "cut off" in cut["trouble"] and cut["rate_rps"] is None
    fake.cut = False
    fake.passes(5)
    assert sampler.sample()[1]["rate_rps"] == 2.0


def test_a_server_that_is_away_is_said_to_be_and_one_that_was_stopped_ends_the_sampling(fake, sampler, declared):
    sampler.sample()
    fake.close()
    (away,) = sampler.sample()
    assert away["trouble"] == "the server does not answer: no connection"
    assert "! the server does not answer" in line(away)
    Layout(declared.root).server_state.unlink()
    assert sampler.sample() is None


def test_what_the_engine_says_of_a_container_is_read_as_docker_stats_shows_it():
    stats = {
        "cpu_stats": {"cpu_usage": {"total_usage": 2_500_000_000}},
        "memory_stats": {"usage": 300 * 2**20, "stats": {"inactive_file": 100 * 2**20}},
    }
    assert of_stats(stats) == (2.5, 200.0)
    assert of_stats({"cpu_stats": {}, "memory_stats": {}}) == (None, None)
    assert Reading().cpu_s is None


def test_samples_are_written_now_and_then_and_wait_while_the_store_is_away(fake, sampler, declared, declare, capsys):
    (first,) = sampler.sample()
    away = declare(TEXT.format(url="postgresql+psycopg://u@127.0.0.1:1/x"))
    keeper = Keeper(away, clock=lambda: fake.now_s)
    first["at"] = datetime.datetime.now(datetime.UTC)
    keeper.keep([first])
    fake.passes(KEEP_S)
    keeper.keep([first])
    assert "samples wait for the store" in capsys.readouterr().out
    keeper._declared = declared  # the store is back
    keeper.close()
    with sqlite3.connect(declared.root / "store.db") as store:
        assert store.execute("select count(*) from samples").fetchone() == (2,)
    assert keeper.lost == 0


def test_samples_that_never_found_the_store_are_counted_as_lost(fake, sampler, declare, capsys):
    (first,) = sampler.sample()
    keeper = Keeper(declare(TEXT.format(url="postgresql+psycopg://u@127.0.0.1:1/x")))
    keeper.keep([first] * 3)
    keeper.close()
    assert "3 samples were lost" in capsys.readouterr().out


@pytest.mark.parametrize(("jump_s", "left"), [(0, 1), (400 * 86400, 2)])
def test_what_is_old_is_deleted_unless_the_wall_clock_jumped(
    fake, sampler, declared, monkeypatch, capsys, jump_s, left
):
    (row,) = sampler.sample()
    keeper = Keeper(declared, clock=lambda: fake.now_s)
    now = datetime.datetime.now(datetime.UTC)
    real = time.time()
    monkeypatch.setattr(time, "time", lambda: real + jump_s)
    keeper.keep([row | {"at": now - datetime.timedelta(days=age)} for age in (31, 29)])
    keeper.close()
    with sqlite3.connect(declared.root / "store.db") as store:
        assert store.execute("select count(*) from samples").fetchone() == (left,)
    assert ("the wall clock jumped" in capsys.readouterr().out) == bool(jump_s)


@pytest.mark.parametrize(
    "times",
    [{"interval_s": value} for value in (-1.0, 0.01, math.nan, math.inf)]
    + [{"duration_s": value} for value in (-1.0, math.nan, math.inf)],
)
def test_times_that_cannot_be_kept_are_refused(fake, sampler, declared, times):
    with pytest.raises(DeclarationError, match=r"cannot be kept|is none"):
        watch(declared, lambda rows: None, **times)


def test_a_server_without_a_metrics_page_cannot_be_watched(fake, sampler, declared):
    server = Server.ready(Layout(declared.root))
    replace(server, metrics_path=None).save(Layout(declared.root))
    with pytest.raises(DeclarationError, match="without a metrics page"):
        watch(declared, lambda rows: None)


def test_what_is_kept_for_good_has_no_limit():
    assert limits(Monitor(keep_samples_days=None)) == (None, None)
    samples, runs = limits(Monitor(keep_samples_days=1, keep_runs_days=10))
    assert samples - runs == pytest.approx(datetime.timedelta(days=9), abs=datetime.timedelta(seconds=1))
