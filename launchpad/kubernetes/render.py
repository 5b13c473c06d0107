"""The manifests as text. Pure: a declaration, what was measured and what is exported in, {path below k8s/: text} out.

The templates are plain YAML with values and the places that they come from, so that what is rendered reads as if it
were written by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from launchpad import batching
from launchpad.configure.render import MODELS
from launchpad.configure.render import render as server_configuration
from launchpad.declaration import Declaration
from launchpad.kubernetes.measured import Measured
from launchpad.kubernetes.sizing import STARTUP_PERIOD_S, Sizing, replicas_for, size
from launchpad.layout import CANONICAL_MODELS, FLAGS_FILE, MODEL_BATCHING
from launchpad.spec import ClosedLoop, Model, Pipeline, Profile, VersionPolicy, has_no_gpu_code

HEADER = "# Rendered from pipeline.yaml and k8s/capacity.json by `invoke manifests`; change it there."
USER = 65532
"""User and group of the server, as in its image."""
HEALTH_CHECK = "/opt/launchpad/healthcheck.sh"
OVERLAYS = ("cpu", "gpu", "keda", "canary", "loadtest")
LABELS_AT_START = "--allow_version_labels_for_unavailable_models=true"
CHANNEL_ARGUMENTS, CONNECTION_AGE = "grpc_channel_arguments", "grpc.max_connection_age_ms"
LOAD_GRACE_S = 300
"""How much longer than its profile a load test in the cluster may take: images are pulled, workers find the master."""


@dataclass(frozen=True)
class ServerImage:
    """What the pods run. digest: None where none is known, and `why` says so; then `tag` names the content.

    base: the name without registry, which is what the load generator's image is named after.
    """

    name: str
    tag: str
    digest: str | None
    why: str
    base: str


@dataclass(frozen=True)
class Inputs:
    """Everything that the manifests follow from, beside the templates.

    versions: exported versions of each model. locustfile: its text.
    """

    declaration: Declaration
    measured: Measured
    image: ServerImage
    versions: Mapping[str, Sequence[int]]
    locustfile: str

    @property
    def pipeline(self) -> Pipeline:
        return self.declaration.pipeline


def render(inputs: Inputs) -> dict[str, str]:
    """Return the manifests, and beside them the files that their ConfigMaps hold."""
    configuration = server_configuration(inputs.pipeline, batching.effective(inputs.declaration))
    sizing = size(inputs.pipeline.kubernetes, inputs.measured)
    environment = Environment(
        loader=PackageLoader("launchpad.kubernetes", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"lines": _lines, "flow": _flow}
    values = _values(inputs, configuration, sizing)
    files = _config_files(inputs, configuration)
    for template in environment.list_templates(filter_func=_is_manifest):
        if "sysctls" in template and not inputs.pipeline.serving.container.sysctls:
            continue
        if "canary" in template and not inputs.pipeline.serving.ports.rest:
            continue
        if "monitoring" in template and not values["metrics"]:
            continue
        own = _role(template, values)
        files[template.removesuffix(".j2")] = _tidy(environment.get_template(template).render(**(values | own)))
    if values["metrics"]:
        files |= _monitoring(inputs)
    return dict(sorted(files.items()))


def _is_manifest(name: str) -> bool:
    return "/" in name and name.endswith(".j2")


def _tidy(text: str) -> str:
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join(line for number, line in enumerate(lines) if line or (number and lines[number - 1])).strip() + "\n"


def _role(template: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs between the two Deployments, and between the two Jobs."""
    app, pipeline = values["app"], values["p"]
    if template.startswith("overlays/canary"):
        return {
            "track": "canary",
            "deployment": f"{app}-canary",
            "container_image": "model-server-canary",
        }
    if template.endswith(("master.yaml.j2", "workers.yaml.j2")):
        role = "master" if "master" in template else "workers"
        profile = pipeline.loadtest.profiles[pipeline.loadtest.profile]
        return {
            "role": role,
            "deadline": math.ceil(profile.duration_s) + LOAD_GRACE_S,
            "locust": locust_command(role, pipeline),
        }
    return {"track": "stable", "deployment": app, "container_image": "model-server"}


def locust_command(role: str, pipeline: Pipeline) -> list[str]:
    """Return the lines of shell that run a part of the load generator."""
    app, ports = pipeline.name, pipeline.serving.ports
    service = f"{app}-grpc" if ports.grpc else app
    common = "exec python -m locust -f loadtests/locustfile.py DeclaredTraffic --headless"
    if role == "master":
        return [
            f'{common} --master --expect-workers="$LAUNCHPAD_PROCESSES" $(cat /load/users) \\',
            f"  --host=http://{service}:{ports.rest} \\",  # of all workers, whatever they were given themselves
            "  --stop-timeout=0 --loglevel=WARNING --only-summary",
        ]
    return [f"{common} --worker --master-host={app}-load --loglevel=WARNING"]


def load_files(profile: Profile, workers: int) -> dict[str, str]:
    """Return the files that tell the load generator what to do."""
    users = f"--users={workers} --spawn-rate={workers}"
    if isinstance(profile, ClosedLoop):
        users = "" if profile.shape else f"--users={profile.users} --spawn-rate={profile.spawn_rate:g}"
    return {"load.json": profile.model_dump_json() + "\n", "processes": f"{workers}\n", "users": f"{users}\n"}


def _values(inputs: Inputs, configuration: Mapping[str, str], sizing: Sizing) -> dict[str, Any]:
    pipeline = inputs.pipeline
    k, ports, app = pipeline.kubernetes, pipeline.serving.ports, pipeline.name
    flags = [line.split("  #")[0].strip() for line in configuration[FLAGS_FILE].splitlines() if line.startswith("--")]
    flags = [flag for flag in flags if not flag.startswith(f"--{CHANNEL_ARGUMENTS}=")]
    base = {"app.kubernetes.io/name": app, "app.kubernetes.io/component": "model-server"}
    managed = {"app.kubernetes.io/managed-by": "tfs-launchpad"}
    track = "tfs-launchpad/track"
    components = [name for name, wanted in _components(inputs).items() if wanted]
    return {
        "header": HEADER,
        "app": app,
        "p": pipeline,
        "k": k,
        "m": inputs.measured,
        "s": sizing,
        "image": inputs.image,
        "user": USER,
        "rest": ports.rest,
        "grpc": ports.grpc,
        "metrics": pipeline.serving.monitoring.enabled and ports.rest > 0,
        "flags": flags,
        "channel_arguments": f"--{CHANNEL_ARGUMENTS}={_channel_arguments(pipeline, sizing)}",
        "labels_at_start": LABELS_AT_START in flags,
        "health": json.dumps(["/bin/bash", HEALTH_CHECK, str(ports.rest), str(ports.grpc), *pipeline.models]),
        "startup_period": STARTUP_PERIOD_S,
        "cpu": _cpu,
        "config": {_key(name): name for name in configuration if name != FLAGS_FILE},
        "config_map": f"{app}-config",
        "batching_mounts": _batching_mounts(inputs, configuration),
        "labels": base | managed,
        "base_selector": base,
        "labels_of": lambda name: base | {track: name} | managed,
        "selector_of": lambda name: base | {track: name},
        "components": _component_list(components),
        "components_with_keda": _component_list(["keda", *components]),
        "components_with_labels": _component_list([*components, "canary-labels"]),
        "sysctls": pipeline.serving.container.sysctls,
        "no_gpu_code": has_no_gpu_code(pipeline.serving.image),
        "gateway": _gateway(k.canary.gateway),
        "canary_words": [
            f"{name}: {', '.join(f'{label} = {version}' for label, version in labels.items())}"
            for name, labels in _labels(inputs).items()
        ],
        **_canary(inputs, sizing),
    }


def _channel_arguments(pipeline: Pipeline, sizing: Sizing) -> str:
    """Return the declared arguments of the gRPC server, and the age of connections unless that is among them.

    In one flag: of two the server heeds the last.
    """
    declared = str(pipeline.serving.flags.get(CHANNEL_ARGUMENTS, ""))
    given = [word for word in declared.split(",") if word]
    if not any(word.startswith(f"{CONNECTION_AGE}=") for word in given):
        given.append(f"{CONNECTION_AGE}={sizing.connection_age_s * 1000}")
    return ",".join(given)


def _canary(inputs: Inputs, sizing: Sizing) -> dict[str, Any]:
    """How many replicas the second Deployment has, and of what rate that is its share."""
    k = inputs.pipeline.kubernetes
    rate = k.demand.peak_rps if k.demand else sizing.target_rps * k.replicas.min
    origin = "kubernetes.demand.peak_rps" if k.demand else "kubernetes.replicas.min at work"
    share = rate * k.canary.weight / 100
    return {
        "canary_replicas": replicas_for(share, sizing.target_rps),
        "canary_of": f"{rate:,.0f} requests/s ({origin})",
    }


def _components(inputs: Inputs) -> dict[str, bool]:
    k, serving = inputs.pipeline.kubernetes, inputs.pipeline.serving
    return {
        "monitoring": k.monitoring and serving.monitoring.enabled and serving.ports.rest > 0,
        "sysctls": k.sysctls,
        "models-claim": k.models.source == "claim",
        "models-bucket": k.models.source == "bucket",
    }


def _component_list(names: Sequence[str]) -> str:
    return "\n".join(["components:", *(f"  - ../../components/{name}" for name in names)]) if names else ""


def _flow(labels: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in labels.items()) + "}"


def _lines(labels: Mapping[str, str], indent: int) -> str:
    return "\n".join(f"{' ' * indent}{name}: {value}" for name, value in labels.items())


def _cpu(cores: float) -> str:
    return f'"{cores:g}"' if cores == int(cores) else f"{round(cores * 1000)}m"


def _gateway(name: str) -> str:
    namespace, _, bare = name.rpartition("/")
    return f"{{name: {bare}, namespace: {namespace}}}" if namespace else f"{{name: {bare}}}"


def _key(name: str) -> str:
    """A ConfigMap's key for a configuration file: folders cannot be in it."""
    return name.replace("/", ".")


def _batching_mounts(inputs: Inputs, configuration: Mapping[str, str]) -> list[dict[str, str]]:
    """Where a model's own batching parameters go: into each of its versions, over those of the image."""
    return [
        {"path": f"{CANONICAL_MODELS}/{name}/{version}/{MODEL_BATCHING}", "key": _key(f"{name}/{MODEL_BATCHING}")}
        for name in inputs.pipeline.models
        if f"{name}/{MODEL_BATCHING}" in configuration
        for version in inputs.versions[name]
    ]


def _config_files(inputs: Inputs, configuration: Mapping[str, str]) -> dict[str, str]:
    """Return the files that go into ConfigMaps."""
    pipeline = inputs.pipeline
    files = {f"base/config/{name}": text for name, text in configuration.items() if name != FLAGS_FILE}
    served = configuration[MODELS]
    models = pipeline.kubernetes.models
    files["components/models-bucket/models.config"] = _own(_in_bucket(served, models.bucket))
    if pipeline.serving.ports.rest:
        labelled = _labelled(inputs)[MODELS]
        labelled = _in_bucket(labelled, models.bucket) if models.source == "bucket" else labelled
        files["components/canary-labels/models.config"] = _own(labelled)
    files["overlays/loadtest/locustfile.py"] = inputs.locustfile
    profile = pipeline.loadtest.profiles[pipeline.loadtest.profile]
    for name, text in load_files(profile, pipeline.kubernetes.generators.workers).items():
        files[f"overlays/loadtest/{name}"] = text
    return files


def _in_bucket(served: str, bucket: str) -> str:
    return served.replace(f'"{CANONICAL_MODELS}/', f'"{bucket}/')


def _own(text: str) -> str:
    """Return a configuration file with this command's header, and without origins that are not in pipeline.yaml."""
    body = [line.split("  #")[0] for line in text.splitlines() if not line.startswith("#")]
    return "\n".join([HEADER, *body]) + "\n"


def _labels(inputs: Inputs) -> dict[str, dict[str, int]]:
    """Return the labels of each model's versions: `stable` and `canary`; the declared ones where there are some.

    The newest version is the canary and the one before it is stable; a model with one version has it as both.
    """
    labels = {}
    for name, model in inputs.pipeline.models.items():
        versions = list(inputs.versions[name]) or [model.version]
        labels[name] = dict(model.version_labels) or {"stable": versions[-2:][0], "canary": versions[-1]}
    return labels


def _labelled(inputs: Inputs) -> dict[str, str]:
    """Return the server's configuration with both versions of each model served, by label."""

    def with_labels(name: str, model: Model) -> Model:
        labels = _labels(inputs)[name]
        policy = VersionPolicy(specific=tuple(sorted(set(labels.values()))))
        return model.model_copy(update={"version_labels": labels, "version_policy": policy})

    models = {name: with_labels(name, model) for name, model in inputs.pipeline.models.items()}
    pipeline = inputs.pipeline.model_copy(update={"models": models})
    return server_configuration(pipeline, batching.effective(inputs.declaration))


def _monitoring(inputs: Inputs) -> dict[str, str]:
    """Return the alert rules as a PrometheusRule, and the dashboard."""
    import yaml

    from launchpad import alerting, dashboard

    app = inputs.pipeline.name
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": app, "labels": {"app.kubernetes.io/name": app}},
        "spec": {"groups": alerting.groups(inputs.declaration, app)},
    }
    folder = "components/monitoring"
    text = f"{HEADER}\n{yaml.safe_dump(rule, sort_keys=False, width=120)}"
    return {
        f"{folder}/prometheusrule.yaml": text,
        f"{folder}/dashboard.json": dashboard.dashboard(inputs.declaration, app),
    }
