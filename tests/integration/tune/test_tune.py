"""`invoke tune` as a user runs it, on servers of its own, beside a profile that was measured before."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from launchpad import machine, tuned
from launchpad.tune import profile, profiling
from launchpad.tune.profile import SIZES
from tests.integration.conftest import Checkout

pytestmark = [
    pytest.mark.alone,
    pytest.mark.timeout(600),  # a profile and a handful of measurements, on however slow a machine
]

MODEL = "digits-mlp"
TUNE = f"tune: {{goal: latency, rate_rps: 200, models: [{MODEL}], candidates: 1, time_limit_s: 300}}\n\nautotune:"
FASTER_RPS = 90_000.0
"""Of the host that the kept profile is of."""


def use(**values: float) -> dict[str, float]:
    common = {"rate_rps": 9000.0, "server_s": 9e-5, "generator_s": 2e-5, "run_s": 3.4e-5, "batch": 1.0}
    return {**common, "median_s": 5e-4, "others": 0.0, **values}


@pytest.fixture(scope="module")
def profiled(shared_checkout: Checkout) -> Checkout:
    """A checkout with the dense net's profile, made up, of a faster host, and a goal that takes little measuring."""
    layout = shared_checkout.layout
    document: dict[str, Any] = {
        "traffic": {"model": MODEL, "signature": "serving_default", "weight": 2},
        "backend": "embedded",
        "sizes": SIZES,
        "run_s": [1e-4 + 4e-6 * size for size in SIZES],
        "spread_s": [[1e-4, 2e-4] for _ in SIZES],
        "fixed_s": 1e-4,
        "row_s": 4e-6,
        "residuals": [0.9, 1.1],
        "together": {"2": 1.1},
        "full": use(rate_rps=FASTER_RPS),
        "large": use(run_s=6e-5),
        "batched": use(server_s=8e-5, batch=12.0),
        "deep": use(server_s=8e-5, batch=12.0),
        "middle": use(rate_rps=4000.0),
        "high": use(rate_rps=7000.0),
        "model_digest": tuned.model_digest(layout, MODEL),
        "machine": machine.describe(),
        "seconds": 30.0,
        "measured": "2026-01-01T00:00:00+00:00",
        "wake_s": 1e-4,
        "client_wake_s": 5e-5,
        "operation_threads": profiling.operation_threads({}, "embedded")[0],
    }
    path = layout.service_profile(MODEL)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    shared_checkout.edit(("autotune:", TUNE))
    return shared_checkout


def progress(checkout: Checkout) -> Path:
    return checkout.root / ".launchpad" / "tune" / MODEL / "progress.json"


@pytest.fixture(scope="module")
def asked_too_much(profiled) -> subprocess.CompletedProcess[str]:
    """A `tune` with a goal that nothing can reach."""
    before = profiled.root.joinpath("pipeline.yaml").read_text()
    profiled.edit(("goal: latency", "goal: rate, p99_ms: 0.01"))
    done = profiled.invoke("tune")
    profiled.root.joinpath("pipeline.yaml").write_text(before)
    return done


def test_a_kept_profile_that_no_longer_holds_is_measured_anew(profiled, asked_too_much):
    assert f"the profile of 2026-01-01 no longer holds ({FASTER_RPS:,.0f} requests/s" in asked_too_much.stdout
    assert profile.load(profiled.layout, MODEL).full.rate_rps < FASTER_RPS / 2


def test_a_latency_that_nothing_can_hold_is_refused_with_what_comes_nearest(asked_too_much):
    assert asked_too_much.returncode == 1
    assert "no configuration is expected to hold p99 of 0.01 ms" in asked_too_much.stdout
    assert "the nearest is" in asked_too_much.stdout and "nothing was measured" in asked_too_much.stdout


def test_a_configuration_is_explained_without_a_server(profiled):
    done = profiled.invoke(
        "tune", "--explain", "--model", MODEL, "--parameters", "{max_batch_size: 8, num_batch_threads: 1}"
    )
    assert done.returncode == 0, done.stdout
    assert "8, 0 µs, 1 thread" in done.stdout and "capacity:" in done.stdout
    refused = profiled.invoke("tune", "--explain", "--model", MODEL, "--parameters", "{max_batch_size: 0}")
    assert refused.returncode == 2 and "max_batch_size" in refused.stdout


def test_tuning_goes_on_after_an_interruption_and_leaves_parameters_with_their_evidence(profiled):
    running = profiled.start("tune")
    deadline = time.monotonic() + 150
    while not progress(profiled).exists():
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()[0]
        time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=60)[0] and running.returncode == 130
    (first,) = json.loads(progress(profiled).read_text())["measured"]

    done = profiled.invoke("tune")

    assert done.returncode == 0, done.stdout
    (report,) = (profiled.root / "reports" / "tuning").iterdir()
    measured = json.loads((report / "measurements.json").read_text())
    assert measured[0]["run"] == first["run"]
    assert {one["chosen"]["queue"] and one["chosen"]["queue"]["max_batch_size"] for one in measured} >= {None, 128}
    text = (report / "report.md").read_text()
    assert "**tuned**" in text and "widespread" in text
    assert all((report / name).read_text().startswith("<svg") for name in ("pareto.svg", "predicted.svg"))
    evidence = yaml.safe_load(profiled.layout.tuned.read_text())["evidence"][MODEL]
    for run in evidence["runs"]:  # to be committed: nothing of this machine's folders
        assert sys.prefix not in (report / "runs" / run / "summary.json").read_text()
    assert not progress(profiled).exists()
    (note,) = profiled.layout.notes.glob("*-tune.md")
    said = note.read_text()
    assert f"(../../reports/tuning/{report.name}/report.md)" in said and f"`tuned.models.{MODEL}" in said


def test_tuned_parameters_are_obeyed_and_doubted_on_another_machine(profiled):
    profiled.edit(("batching: off #", "batching: tuned #"))
    assert "another machine" not in profiled.invoke("configure", check=True).stdout
    text = profiled.layout.tuned.read_text()
    profiled.layout.tuned.write_text(text.replace("cores: ", "cores: 10"))
    assert f"{MODEL} was tuned on another machine: cores was 10" in profiled.invoke("configure", check=True).stdout
