"""The files of `serving/monitoring/`: for the Prometheus and the Grafana of the compose file, or for one's own.

Pure: a declaration in, {path below the checkout: text} out.
"""

from __future__ import annotations

import yaml

from launchpad import alerting, dashboard
from launchpad.alerting import HEADER
from launchpad.declaration import Declaration
from launchpad.image.recipe import PROMETHEUS_PORT, scraped

FOLDER = "serving/monitoring"


def render(declaration: Declaration) -> dict[str, str]:
    """Return the files; none where the server has no metrics page."""
    pipeline = declaration.pipeline
    if not scraped(pipeline):
        return {}
    port = pipeline.serving.ports.rest
    files = {
        "prometheus.yml": alerting.scrape(pipeline, f"model-server:{port}"),
        "prometheus.local.yml": alerting.scrape(pipeline, f"127.0.0.1:{port}"),
        "rules.yml": alerting.rules(declaration),
        "dashboard.json": dashboard.dashboard(declaration),
        "datasource.yml": _datasource(),
        "dashboards.yml": _dashboards(),
    }
    return {f"{FOLDER}/{name}": text for name, text in files.items()}


def _datasource() -> str:
    """Return Grafana's provisioning of its data source."""
    source = {
        "name": "Prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": f"http://prometheus:{PROMETHEUS_PORT}",
        "isDefault": True,
    }
    return HEADER + yaml.safe_dump({"apiVersion": 1, "datasources": [source]}, sort_keys=False)


def _dashboards() -> str:
    """Return Grafana's provisioning of its dashboards."""
    provider = {"name": "launchpad", "type": "file", "options": {"path": "/var/lib/grafana/dashboards"}}
    return HEADER + yaml.safe_dump({"apiVersion": 1, "providers": [provider]}, sort_keys=False)
