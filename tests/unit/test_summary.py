"""The summary of a run follows from its files alone, and its figures are those of every request."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launchpad import runfolder
from launchpad.loadtest import summary
from launchpad.loadtest.recorder import Recorder
from launchpad.loadtest.writer import RunWriter
from launchpad.spec import Objectives

MODELS = {"a s": "a", "a t": "a", "b s": "b"}


def record(folder: Path, requests: list[tuple[str, int | None]], seconds: int = 1) -> None:
    """Record (line, latency in µs or None for a failure), spread evenly over the seconds."""
    recorder, writer = Recorder(list(MODELS), open_loop=False), RunWriter(folder)
    for second in range(seconds):
        for line, latency_us in requests[second::seconds]:
            if latency_us is None:
                recorder.failed(line, "HTTP 503", "full", 0, 900_000_000)
            else:
                recorder.answered(line, 0, 0, latency_us * 1000)
        writer.add(second, recorder.take())
    writer.close()


def near(value_ms: float, least_us: float, most_us: float | None = None) -> bool:
    """Whether a figure is the exact one, or between two exact ones, within three significant digits."""
    return least_us * 0.999 - 1 <= value_ms * 1000 <= (most_us or least_us) * 1.001 + 1


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(list(MODELS)), st.none() | st.integers(1, 60_000_000)), max_size=60),
    st.integers(1, 4),
)
def test_figures_are_those_of_every_request_whatever_second_it_fell_in(requests, seconds):
    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder), requests, seconds)
        measured = summary.of_folder(Path(folder), MODELS, 2.0)
    scopes = {"totals": (measured["totals"], set(MODELS))}
    scopes |= {m: (measured["models"][m], {x for x in MODELS if MODELS[x] == m}) for m in ("a", "b")}
    scopes |= {line: (measured["lines"][line], {line}) for line in MODELS}
    for figures, lines in scopes.values():
        latencies = [us for line, us in requests if line in lines and us is not None]
        count = sum(line in lines for line, _ in requests)
        assert (figures["requests"], figures["failures"]) == (count, count - len(latencies))
        assert figures["success_rate"] == (len(latencies) / count if count else None)
        assert figures["throughput_rps"] == round(len(latencies) / 2.0, 1)
        if not latencies:
            assert {figures[key] for key in ("mean_ms", "p50_ms", "p99_ms", "p99.9_ms", "max_ms")} == {None}
            continue
        for key, percentile in {"p50_ms": 50, "p90_ms": 90, "p95_ms": 95, "p99_ms": 99, "p99.9_ms": 99.9}.items():
            bounds = [np.percentile(latencies, percentile, method=which) for which in ("lower", "higher")]
            assert near(figures[key], *bounds)
        assert near(figures["max_ms"], max(latencies))
        assert near(figures["mean_ms"], np.mean(latencies))


def test_without_a_measured_length_the_seconds_of_the_history_count(tmp_path):
    record(tmp_path, [("a s", 1000)] * 30, seconds=3)
    measured = summary.of_folder(tmp_path, MODELS, None)
    assert measured["measured_s"] == 3.0
    assert measured["totals"]["throughput_rps"] == 10.0


def test_a_run_that_was_cut_short_is_summarised_up_to_its_last_whole_second(tmp_path):
    record(tmp_path, [("a s", 1000)] * 20 + [("b s", 2000)] * 20, seconds=2)
    history = tmp_path / runfolder.HISTORY
    history.write_bytes(history.read_bytes()[:-15])
    measured = summary.of_folder(tmp_path, MODELS, None)
    assert measured["models"]["a"]["requests"] == 20
    assert measured["models"]["b"]["requests"] == 10


def test_errors_are_listed(tmp_path):
    record(tmp_path, [("a s", None), ("a s", None)])
    assert summary.of_folder(tmp_path, MODELS, 1.0)["errors"] == [
        {"line": "a s", "kind": "HTTP 503", "count": 2, "example": "full"}
    ]


def gates(folder: Path, **declared) -> dict[str, bool | None]:
    found = summary.objectives(summary.of_folder(folder, MODELS, 1.0), Objectives(**declared))
    return {gate.name: gate.passed for gate in found}


def test_objectives_hold_for_each_model_by_itself(tmp_path):
    record(tmp_path, [("a s", 5_000)] * 90 + [("b s", 50_000)] * 9 + [("b s", None)])
    assert gates(tmp_path, p99_ms=10.0, error_rate=0.01, throughput_rps=99.0) == {
        "p99 of a": True,
        "error rate of a": True,
        "p99 of b": False,
        "error rate of b": False,
        "throughput": True,
    }


def test_as_many_failures_as_are_allowed_hold(tmp_path):
    """1 - 999 / 1000 is more than 0.001 in floating point."""
    record(tmp_path, [("a s", 5_000)] * 999 + [("a s", None)])
    assert gates(tmp_path, error_rate=0.001)["error rate of a"] is True


def test_failed_requests_do_not_count_as_throughput(tmp_path):
    record(tmp_path, [("a s", 5_000)] * 50 + [("a s", None)] * 50)
    assert gates(tmp_path, throughput_rps=60.0) == {"throughput": False}


@pytest.mark.parametrize("declared", [{"p99_ms": 10.0}, {"error_rate": 0.1}])
def test_a_model_that_was_never_asked_has_not_passed(tmp_path, declared):
    record(tmp_path, [("a s", 5_000)])
    name = "p99 of b" if "p99_ms" in declared else "error rate of b"
    assert gates(tmp_path, **declared)[name] is None


def test_what_is_not_declared_is_no_gate(tmp_path):
    record(tmp_path, [("a s", 5_000)])
    assert gates(tmp_path) == {}


def health(folder: Path, lag_ms: float, response_ms: float, cpu: dict[int, float] | None = None) -> dict:
    recorder, writer = Recorder(list(MODELS), open_loop=True), RunWriter(folder)
    for _ in range(100):
        recorder.answered("a s", 0, int(lag_ms * 1e6), int(response_ms * 1e6))
    writer.add(0, recorder.take())
    writer.close()
    return summary.generator_health(folder, 1, cpu or {0: 0.5}, held=3)


def test_a_generator_that_keeps_up_does_not_limit_the_run(tmp_path):
    found = health(tmp_path, lag_ms=0.1, response_ms=5)
    assert (found["limited"], found["why"], found["held"]) == (False, "", 3)
    assert found["send_lag_p99_ms"] == pytest.approx(0.1, rel=1e-2)


def test_a_generator_that_sends_late_limits_the_run(tmp_path):
    found = health(tmp_path, lag_ms=20, response_ms=30)
    assert found["limited"] and "late at p99" in found["why"]


def test_a_lag_that_is_small_beside_the_response_time_does_not(tmp_path):
    assert not health(tmp_path, lag_ms=20, response_ms=500)["limited"]


def test_one_process_at_full_cpu_among_several_limits_the_run(tmp_path):
    found = health(tmp_path, 0.1, 5, cpu={0: 0.2, 1: 0.99})
    assert found["limited"] and "99%" in found["why"] and found["cpu"] == 0.99


def test_a_closed_loop_has_no_send_lag(tmp_path):
    record(tmp_path, [("a s", 5_000)])
    assert summary.generator_health(tmp_path, 1, {0: 0.1}, held=0)["send_lag_p99_ms"] is None
