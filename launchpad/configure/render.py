"""The server's configuration files as text. Pure: a declaration in, {file name: content} out.

Formats are those of TensorFlow Serving: ModelServerConfig, BatchingParameters and MonitoringConfig as text protos.
Paths name the roots `/models` and `/config`; whoever starts the server puts real folders behind them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from launchpad import pbtxt
from launchpad.batching import Effective
from launchpad.layout import CANONICAL_CONFIG, CANONICAL_MODELS, FLAGS_FILE, MODEL_BATCHING
from launchpad.modelserver.flags import FLAGS
from launchpad.spec import Model, Pipeline, VersionPolicy

MODELS = "models.config"
BATCHING = "batching_parameters.pbtxt"
MONITORING = "monitoring.config"

OF_THE_MACHINE = ("rest_api_num_threads", "grpc_max_threads")
"""Flags whose default is by the number of processors: what is rendered would differ from machine to machine."""

HEADER = (
    "# Rendered from pipeline.yaml by `invoke configure`; change it there. Behind each value: the key it is from.\n"
)


def render(pipeline: Pipeline, batching: Effective) -> dict[str, str]:
    """Return the configuration as {path below serving/config: text}."""
    files = {MODELS: _models(pipeline.models), FLAGS_FILE: _flags(pipeline, batching)}
    if batching.server:
        files[BATCHING] = HEADER + pbtxt.batching_parameters(
            batching.server, _origin(pipeline.serving.batching, "serving.batching")
        )
    if batching.per_model:
        for name, queue in batching.queues.items():
            if queue:
                own = pipeline.models[name].batching
                key = "serving.batching" if own is None else f"models.{name}.batching"
                origin = _origin(own or pipeline.serving.batching, key)
                files[f"{name}/{MODEL_BATCHING}"] = HEADER + pbtxt.batching_parameters(queue, origin)
    if pipeline.serving.monitoring.enabled:
        files[MONITORING] = HEADER + (
            "prometheus_config {\n"
            "  enable: true  # serving.monitoring.enabled\n"
            f'  path: "{pipeline.serving.monitoring.path}"  # serving.monitoring.path\n'
            "}\n"
        )
    return dict(sorted(files.items()))


def _origin(value: object, key: str) -> str:
    return "serving/tuned.yaml" if value == "tuned" else key


def _models(models: Mapping[str, Model]) -> str:
    configs = "".join(f"  config {{\n{''.join(_model(name, model))}  }}\n" for name, model in models.items())
    return f"{HEADER}model_config_list {{\n{configs}}}\n"


def _model(name: str, model: Model) -> Iterator[str]:
    yield f'    name: "{name}"  # models.{name}\n'
    yield f'    base_path: "{CANONICAL_MODELS}/{name}"\n'
    yield '    model_platform: "tensorflow"\n'
    if model.version_policy:
        yield f"    model_version_policy {{ {_policy(model.version_policy)} }}  # models.{name}.version_policy\n"
    for label, version in model.version_labels.items():
        yield f'    version_labels {{ key: "{label}" value: {version} }}  # models.{name}.version_labels.{label}\n'


def _policy(policy: VersionPolicy) -> str:
    if policy.latest:
        return f"latest {{ num_versions: {policy.latest} }}"
    if policy.specific:
        return f"specific {{ {' '.join(f'versions: {version}' for version in policy.specific)} }}"
    return "all {}"


def _flags(pipeline: Pipeline, batching: Effective) -> str:
    rows = list(_flag_rows(pipeline, batching))
    width = max(len(flag) for flag, _ in rows)
    return HEADER + "".join(f"{flag:<{width}}  # {origin}\n" for flag, origin in rows)


def _flag_rows(pipeline: Pipeline, batching: Effective) -> Iterator[tuple[str, str]]:
    """Yield (flag with value, where it comes from)."""
    serving = pipeline.serving
    yield f"--port={serving.ports.grpc}", "serving.ports.grpc"
    if not serving.ports.grpc and "grpc_socket_path" not in serving.flags:  # without either the server does not start
        yield f"--grpc_socket_path=/tmp/tfs-launchpad-{pipeline.name}.sock", "serving.ports.grpc: off but for a socket"
    yield f"--rest_api_port={serving.ports.rest}", "serving.ports.rest"
    yield f"--model_config_file={CANONICAL_CONFIG}/{MODELS}", "models"
    if serving.monitoring.enabled:
        yield f"--monitoring_config_file={CANONICAL_CONFIG}/{MONITORING}", "serving.monitoring"
    if batching.server:
        yield "--enable_batching=true", "serving.batching"
        yield f"--batching_parameters_file={CANONICAL_CONFIG}/{BATCHING}", "serving.batching"
    if batching.per_model:
        yield (
            "--enable_per_model_batching_parameters=true",
            "autotune" if batching.changing else "batching of the models",
        )
    labelled = [name for name, model in pipeline.models.items() if model.version_labels]
    if labelled and "allow_version_labels_for_unavailable_models" not in serving.flags:
        origin = f"models.{labelled[0]}.version_labels"
        yield "--allow_version_labels_for_unavailable_models=true", f"{origin}: labels at start-up need it"
    for name, value in serving.flags.items():
        same = " (the server's default)" if value == FLAGS[name].default and name not in OF_THE_MACHINE else ""
        yield f"--{name}={str(value).lower() if isinstance(value, bool) else value}", f"serving.flags.{name}{same}"
