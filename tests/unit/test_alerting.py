"""Prometheus' rules and Grafana's dashboard: what promtool says of them, and that they follow from the declaration."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from launchpad import alerting, dashboard

DECLARED = """
name: digits
models:
  tiny: {source: model.py:build}
  a.b: {source: model.py:build}
serving:
  batching: {max_batch_size: 16, num_batch_threads: 2, max_enqueued_batches: 64}
  flags: {rest_api_num_threads: 32, grpc_max_threads: 32}
objectives: {p99_ms: 100, error_rate: 0.001}
"""


def promtool(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        if os.environ.get("CI"):
            pytest.fail("promtool is not installed")
        pytest.skip("not run: promtool is not installed")
    return subprocess.run(["promtool", *words], cwd=folder, capture_output=True, text=True)


def test_the_alerts_fire_when_they_should_and_not_before(declare, tmp_path):
    (tmp_path / "rules.yml").write_text(alerting.rules(declare(DECLARED)))
    shutil.copy(Path(__file__).with_name("rules.test.yml"), tmp_path)
    done = promtool("test", "rules", "rules.test.yml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_committed_configurations_and_rules_are_valid(repository):
    folder = repository / "serving" / "monitoring"
    done = promtool("check", "config", "prometheus.yml", "prometheus.local.yml", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def alerts(declaration) -> dict[str, str]:
    return {
        rule["alert"]: rule["expr"]
        for group in alerting.groups(declaration)
        for rule in group["rules"][:]
        if "alert" in rule
    }


def test_what_is_not_declared_alerts_nobody(declare):
    bare = alerts(declare("name: digits\nmodels:\n  tiny: {source: model.py:build}\n"))
    assert set(bare) == {"ModelServerDown", "NoVersionAvailable", "RequestsRefused"}


def test_a_queue_that_threads_cannot_fill_is_judged_by_the_threads(declare):
    assert alerts(declare(DECLARED))["BatchQueueSaturated"].endswith("> 32")
    without = DECLARED.replace("  flags: {rest_api_num_threads: 32, grpc_max_threads: 32}\n", "")
    assert alerts(declare(without))["BatchQueueSaturated"].endswith("> 512")


def test_another_job_is_asked_for_everywhere(declare):
    declared = declare(DECLARED)
    text = yaml.safe_dump(alerting.groups(declared, job="serving/digits")) + dashboard.dashboard(
        declared, "serving/digits"
    )
    assert 'job="digits"' not in text.replace("\\", "")


def test_the_dashboard_names_its_source_and_every_query(declare):
    board = json.loads(dashboard.dashboard(declare(DECLARED)))
    queries = [target for panel in board["panels"] for target in panel["targets"]]
    assert len(queries) > 15 and all(target["refId"] and target["expr"] for target in queries)
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    titles = [panel["title"] for panel in board["panels"]]
    assert "Batch size distribution" in titles and "Queueing and compute" in titles
