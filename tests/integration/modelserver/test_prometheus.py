"""A real Prometheus scrapes the metrics page."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_for

from .conftest import Server, free_port


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
def test_prometheus_finds_the_servers_series(probe: Server, tmp_path: Path) -> None:
    probe.rest("/v1/models/probe:predict", {"instances": [1.0]})
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n"
        "  - job_name: modelserver\n"
        "    metrics_path: /monitoring/prometheus/metrics\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{probe.rest_port}']}}]\n"
    )
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:

        def query(expression: str) -> list[Any]:
            try:
                url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(expression)}"
                with urllib.request.urlopen(url, timeout=5) as response:
                    return json.load(response)["data"]["result"]
            except OSError:
                return []

        wait_for(lambda: bool(query("up == 1")), 30)
        wait_for(lambda: bool(query('{__name__=":tensorflow:serving:request_count",status="OK"} > 0')))
        assert query('histogram_quantile(0.5, {__name__=":tensorflow:serving:request_latency_bucket",API="predict"})')
    finally:
        process.kill()
        process.wait()
