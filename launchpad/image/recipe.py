"""The files that make and run the server image, as text: Dockerfile, .dockerignore, and a compose file.

Pure: a declaration and what was exported in, {path below the checkout: text} out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from launchpad.alerting import HEADER
from launchpad.backends.container import RESTARTS
from launchpad.imagefile import LABELS, SCRIPTS
from launchpad.layout import CANONICAL_CONFIG, CANONICAL_MODELS, MODEL_BATCHING
from launchpad.spec import Container, Pipeline

HOME = "/opt/launchpad"
NOBODY = 65532
"""User and group of the server: no name, no home, nothing that it owns."""
HEALTH_INTERVAL_S = 5
HEALTH_TIMEOUT_S = 5
PROMETHEUS, GRAFANA = "prom/prometheus:v3.5.0", "grafana/grafana:12.2.0"
PROMETHEUS_PORT, GRAFANA_PORT = 9090, 3000


def render(
    pipeline: Pipeline, flags: Sequence[str], versions: Mapping[str, Sequence[int]], own_batching: Sequence[str]
) -> dict[str, str]:
    """Return the files.

    flags: the server's command line; versions: the exported ones of each model; own_batching: models with parameters
    of their own, which each of their versions is given.
    """
    return {
        ".dockerignore": dockerignore(pipeline),
        "serving/Dockerfile": dockerfile(pipeline, flags, versions, own_batching),
        "serving/docker-compose.yml": compose(pipeline),
    }


def dockerignore(pipeline: Pipeline) -> str:
    """Return what keeps the context to what the Dockerfile copies.

    Paths are spelt out: of a folder that only a pattern names, docker takes in nothing.
    """
    wanted = ["serving/config", *(f"serving/{name}" for name in SCRIPTS)]
    if pipeline.serving.models == "baked":
        wanted += [f"models/{name}/versions" for name in pipeline.models]
    lines = ["*", *(f"!{path}" for path in wanted), "**/.*", "**/__pycache__"]
    return f"{HEADER}# Only what serving/Dockerfile copies.\n" + "\n".join(lines) + "\n"


def dockerfile(
    pipeline: Pipeline, flags: Sequence[str], versions: Mapping[str, Sequence[int]], own_batching: Sequence[str]
) -> str:
    """Return the Dockerfile. What changes least comes first, so that a changed flag costs no copy of the models.

    It runs nothing while it builds, and relies on bash and tensorflow_model_server alone.
    """
    serving = pipeline.serving
    ports = [port for port in (serving.ports.rest, serving.ports.grpc) if port]
    health = ["/bin/bash", f"{HOME}/healthcheck.sh", str(serving.ports.rest), str(serving.ports.grpc), *pipeline.models]
    served = " ".join(f"{name}:{','.join(map(str, versions.get(name, ())))}" for name in pipeline.models)
    lines = [
        f"{HEADER}# By hand, from the root of the checkout: docker build --file serving/Dockerfile .",
        f"FROM {serving.image}",
        "",
        "# The server may write nowhere but in /tmp.",
        "ENV HOME=/tmp",
        f"COPY {' '.join(f'serving/{name}' for name in SCRIPTS)} {HOME}/",
        "",
        *_models(pipeline, versions, own_batching),
        f"COPY serving/config/ {CANONICAL_CONFIG}/",
        "",
        f"USER {NOBODY}:{NOBODY}",
        f"EXPOSE {' '.join(map(str, ports))}",
        "STOPSIGNAL SIGTERM",
        "# Ends with what it found: ready, loading or dead.",
        f"HEALTHCHECK --interval={HEALTH_INTERVAL_S}s --timeout={HEALTH_TIMEOUT_S}s "
        f"--start-period={serving.ready_timeout_s:g}s --retries=3 \\",
        f"    CMD {json.dumps(health)}",
        "# Not the entry point of the base image, whose bash keeps the signals to itself.",
        f'ENTRYPOINT ["/bin/bash", "{HOME}/entrypoint.sh"]',
        f"CMD {_list(flags)}",
        "",
        "# `invoke build` says what was built from what; a build by hand does not know.",
        'ARG MANIFESTS="unknown"',
        'ARG REVISION="unknown"',
        f'LABEL {LABELS}.name="{pipeline.name}" \\',
        f'      {LABELS}.models="{served}" \\',
        f'      {LABELS}.manifests="${{MANIFESTS}}" \\',
        '      org.opencontainers.image.revision="${REVISION}"',
    ]
    return "\n".join(lines) + "\n"


def _models(pipeline: Pipeline, versions: Mapping[str, Sequence[int]], own_batching: Sequence[str]) -> list[str]:
    if pipeline.serving.models == "mounted":
        return [f"# The models are mounted at {CANONICAL_MODELS} (serving.models)."]
    lines = [f"COPY models/{name}/versions/ {CANONICAL_MODELS}/{name}/" for name in pipeline.models]
    return lines + [
        f"COPY serving/config/{name}/{MODEL_BATCHING} {CANONICAL_MODELS}/{name}/{version}/"
        for name in own_batching
        for version in versions.get(name, ())
    ]


def _list(words: Sequence[str]) -> str:
    return "[" + ", \\\n     ".join(map(json.dumps, words)) + "]"


def compose(pipeline: Pipeline) -> str:
    """Return a compose file that runs the server as the docker backend does, and what watches it beside it."""
    serving = pipeline.serving
    services: dict[str, Any] = {"model-server": _server(pipeline)}
    if scraped(pipeline):
        services["prometheus"] = {
            "image": PROMETHEUS,
            "ports": [f"127.0.0.1:{PROMETHEUS_PORT}:{PROMETHEUS_PORT}"],
            "volumes": ["./monitoring:/etc/prometheus:ro"],
            "depends_on": {"model-server": {"condition": "service_healthy"}},
        }
        services["grafana"] = {
            "image": GRAFANA,
            "ports": [f"127.0.0.1:{GRAFANA_PORT}:{GRAFANA_PORT}"],
            "environment": {"GF_AUTH_ANONYMOUS_ENABLED": "true", "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer"},
            "volumes": [
                "./monitoring/datasource.yml:/etc/grafana/provisioning/datasources/launchpad.yml:ro",
                "./monitoring/dashboards.yml:/etc/grafana/provisioning/dashboards/launchpad.yml:ro",
                "./monitoring/dashboard.json:/var/lib/grafana/dashboards/launchpad.json:ro",
            ],
        }
    use = "# docker compose --file serving/docker-compose.yml up --build"
    if serving.models == "mounted":
        use += "    (the models are those of the last `invoke launch`)"
    return f"{HEADER}{use}\n" + yaml.safe_dump({"services": services}, sort_keys=False, width=120)


def _server(pipeline: Pipeline) -> dict[str, Any]:
    serving, granted = pipeline.serving, pipeline.serving.container
    service: dict[str, Any] = {
        "image": f"tfs-launchpad/{pipeline.name}:compose",
        "build": {"context": "..", "dockerfile": "serving/Dockerfile"},
        "ports": [f"127.0.0.1:{port}:{port}" for port in (serving.ports.rest, serving.ports.grpc) if port],
        "read_only": True,
        "tmpfs": ["/tmp:size=64m"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": _restart(granted),
        "logging": {
            "driver": "json-file",
            "options": {"max-size": granted.log_size, "max-file": str(granted.log_files)},
        },
    }
    if granted.sysctls:
        service["sysctls"] = {name: str(value) for name, value in granted.sysctls.items()}
    if granted.memory:
        service |= {"mem_limit": granted.memory, "memswap_limit": granted.memory}
    if granted.cpus:
        service["cpus"] = granted.cpus
    if serving.models == "mounted":
        service["volumes"] = [f"../.launchpad/deployment/models:{CANONICAL_MODELS}:ro"]
    if serving.gpu == "require":
        devices = [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
        service["deploy"] = {"resources": {"reservations": {"devices": devices}}}
    return service


def _restart(granted: Container) -> str:
    return {"never": "no", "on-failure": f"on-failure:{RESTARTS}"}.get(granted.restart, granted.restart)


def scraped(pipeline: Pipeline) -> bool:
    return pipeline.serving.monitoring.enabled and pipeline.serving.ports.rest > 0
