"""The monitor on a real server: by itself beside a chain, and in the background; notes on what was changed between."""

from __future__ import annotations

import json
import time

import psutil
import pytest

from launchpad.server import Server

pytestmark = pytest.mark.alone

SHORT = ("--profile", "smoke", "--duration", "3")


def monitors(root) -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if "launchpad.monitor" in (p.info["cmdline"] or []) and str(root) in p.info["cmdline"]]


def asked(checkout, sql: str) -> list[dict]:
    return json.loads(checkout.invoke("query", sql, "--json", check=True).stdout)


def test_a_chain_is_watched_kept_and_what_changed_between_two_is_noted(checkout):
    checkout.edit(("store: sqlite", "monitor: {interval_s: 0.5}\n\nstore: sqlite"))
    checkout.invoke("deploy-local", *SHORT, check=True)

    assert not monitors(checkout.root)
    rows = asked(checkout, "select model, sum(answered) as answered, max(p99_ms) as p99_ms from samples group by model")
    seen = {row["model"]: row for row in rows}
    (run,) = checkout.runs()
    sent = json.loads((run / "summary.json").read_text())["totals"]["requests"]
    assert seen[""]["answered"] >= sent * 0.5  # the monitor starts beside the warmup and ends with the chain
    assert seen["digits-cnn"]["answered"] + seen["digits-mlp"]["answered"] == seen[""]["answered"]
    assert asked(checkout, "select max(cpu) > 0.05 as busy, max(memory_mib) > 100 as loaded from samples") == [
        {"busy": 1, "loaded": 1}
    ]
    stages = [row["stage"] for row in asked(checkout, f"select stage from stages where run = '{run.name}' order by id")]
    assert stages == ["export", "configure", "build", "launch", "warmup", "loadtest", "report"]

    checkout.edit(("p99_ms: 100", "p99_ms: 90"))
    checkout.invoke("note", "what the callers wait for at most", check=True)
    assert "noted: reports/notes/" in checkout.invoke("loadtest", *SHORT, check=True).stdout

    (note,) = [path for path in (checkout.root / "reports" / "notes").glob("*.md") if path.name != "README.md"]
    first, second = (run.name for run in checkout.runs())
    text = note.read_text()
    assert "| `objectives.p99_ms` | `100` | `90` |" in text and "what the callers wait for at most" in text
    figures = f"../../loadtests/results/{second}/summary.json"
    assert f"[{first}](../{first}/report.md) | [{second}]({figures})" in text
    checkout.invoke("report", check=True)
    assert f"[{second}](../{second}/report.md)" in note.read_text()
    history = asked(checkout, "select source, run_before, run_after from config_history")
    assert history == [{"source": "hand", "run_before": first, "run_after": second}]


def test_the_background_monitor_is_one_sees_the_server_die_and_ends_when_told(checkout):
    assert "invoke launch" in checkout.invoke("monitor", "--duration", "1").stdout
    checkout.invoke("launch", check=True)

    checkout.invoke("monitor", "--background", "--interval", "0.2", check=True)
    again = checkout.invoke("monitor", "--background")
    assert again.returncode == 3 and "another monitor watches" in again.stdout
    (running,) = monitors(checkout.root)
    time.sleep(1)
    psutil.Process(Server.ready(checkout.layout).pid).kill()
    time.sleep(1)
    assert f"process {running.pid}" in checkout.invoke("monitor", "--stop", check=True).stdout

    assert not monitors(checkout.root)
    troubles = {row["trouble"] for row in asked(checkout, "select trouble from samples")}
    assert troubles == {"", "the server does not answer: no connection"}
    assert "no monitor was running" in checkout.invoke("monitor", "--stop", check=True).stdout
