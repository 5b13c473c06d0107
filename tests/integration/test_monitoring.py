"""A real Prometheus on the rendered files: it scrapes the launched server, its alerts fire and clear."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from launchpad.client import RestClient
from launchpad.examples import Examples
from tests.waiting import wait_for

HASTENED = (("[5m]", "[5s]"), ("for: 5m", "for: 1s"), ("for: 1m", "for: 1s"), ("_interval: 5s", "_interval: 1s"))
"""The rendered files work in minutes; a test has seconds."""
UNREACHABLE_MS = "0.01"
"""An objective that every request misses."""


class Prometheus:
    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/api/v1"
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.local.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def query(self, expression: str) -> list[Any]:
        answer = requests.get(f"{self.url}/query", {"query": expression}, timeout=5).json()
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def firing(self) -> set[str]:
        alerts = requests.get(f"{self.url}/alerts", timeout=5).json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def is_ready(self) -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/-/ready", timeout=5).ok
        except requests.ConnectionError:
            return False


@pytest.fixture
def asked(checkout) -> Iterator[threading.Event]:
    """Requests to both models, one after the other, until the event is set."""
    enough = threading.Event()
    client = RestClient(f"http://127.0.0.1:{checkout.rest_port}")
    names = ("digits-mlp", "digits-cnn")
    examples = {name: Examples.load(checkout.layout.evidence(name, 1) / "examples.npz") for name in names}

    def ask() -> None:
        while not enough.wait(0.005):
            for name, known in examples.items():
                client.predict(name, "bytes", {key: rows[:4] for key, rows in known.inputs["bytes"].items()})

    checkout.edit(("p99_ms: 100", f"p99_ms: {UNREACHABLE_MS}"))
    checkout.invoke("launch", check=True)
    thread = threading.Thread(target=ask)
    thread.start()
    yield enough
    enough.set()
    thread.join()


@pytest.fixture
def prometheus(checkout, asked: threading.Event, tmp_path: Path) -> Iterator[Prometheus]:
    """Started on what `invoke build` renders, hastened."""
    if shutil.which("prometheus") is None:
        if os.environ.get("CI"):
            pytest.fail("Prometheus is not installed")
        pytest.skip("not run: Prometheus is not installed")
    from launchpad.declaration import load
    from launchpad.image.stage import render
    from launchpad.stage import Context

    render(Context(load(checkout.root)))
    folder = tmp_path / "prometheus"
    folder.mkdir()
    for name in ("prometheus.local.yml", "rules.yml"):
        text = (checkout.root / "serving" / "monitoring" / name).read_text()
        for slow, fast in HASTENED:
            text = text.replace(slow, fast)
        (folder / name).write_text(text)
    started = Prometheus(folder)
    try:
        wait_for(started.is_ready)
        yield started
    finally:
        started.process.kill()
        started.process.wait()


def test_alerts_fire_and_clear_and_every_panel_has_data(checkout, asked, prometheus):
    wait_for(lambda: "LatencyOverObjective" in prometheus.firing())
    assert prometheus.firing() == {"LatencyOverObjective"}
    board = json.loads((checkout.root / "serving" / "monitoring" / "dashboard.json").read_text())
    for panel in board["panels"]:
        answers = [prometheus.query(target["expr"].replace("$__rate_interval", "5s")) for target in panel["targets"]]
        assert all(answers) or panel["title"] in ("CPU", "Memory"), panel["title"]
    (share,) = prometheus.query('job_model:errors:ratio_rate5m{model_name="digits-cnn"}')
    assert float(share["value"][1]) == 0

    asked.set()  # nobody asks any more: no request misses the objective
    wait_for(lambda: not prometheus.firing())

    checkout.invoke("stop", check=True)
    wait_for(lambda: "ModelServerDown" in prometheus.firing())
    checkout.invoke("launch", check=True)
    wait_for(lambda: not prometheus.firing())
