"""The configuration files: text-format messages, read and checked."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format

from .batching import BatchingOptions
from .flags import Options, schedulable_cpus
from .protos import BatchingParameters, ConfigProto, ModelServerConfig, MonitoringConfig, SSLConfig
from .status import ServingError, invalid_argument

_DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"
_PER_MODEL_BATCHING_FILE = "batching_params.pbtxt"
_TENSORFLOW = 1
"""Of the deprecated enum ModelType."""


class ConfigError(ValueError):
    """A configuration file that cannot be obeyed; the message is fit for the user."""


def _read(path: str, message: Any) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return text_format.Parse(file.read(), message)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text") from None
    except text_format.ParseError as error:
        raise ConfigError(f"{path}:{error}") from None


@dataclass(frozen=True)
class VersionPolicy:
    """Which of a model's versions are to be served: the latest ones, those named, or all."""

    latest: int | None = 1
    specific: frozenset[int] | None = None

    def choose(self, versions: set[int]) -> set[int]:
        """Those of `versions` that are to be served."""
        if self.specific is not None:
            return versions & self.specific
        return set(sorted(versions, reverse=True)[: self.latest])


@dataclass(frozen=True)
class ModelSettings:
    """What is configured for one model."""

    name: str
    base_path: str
    policy: VersionPolicy
    labels: Mapping[str, int]


def single_model(options: Options) -> dict[str, ModelSettings]:
    """The configuration that --model_name and --model_base_path make."""
    if not options.model_base_path:
        raise ConfigError("--model_base_path or --model_config_file is required")
    path = os.path.abspath(options.model_base_path)
    return {options.model_name: ModelSettings(options.model_name, path, VersionPolicy(), {})}


def read_model_config(path: str, instead: bool = False) -> dict[str, ModelSettings]:
    """The models in a ModelServerConfig file. Raises ConfigError, naming the file and where it can the line.

    instead: it is to take the place of a list of models, so that one without a list, such as a file that is being
    written, is refused.
    """
    message = _read(path, ModelServerConfig())
    if instead and message.WhichOneof("config") is None:
        raise ConfigError(
            f"{path}: Cannot transition to requested config. It is only legal to transition from one ModelConfigList "
            "to another."
        )
    try:
        return model_settings(message)
    except ServingError as error:
        raise ConfigError(f"{path}: {error.message}") from None


def model_settings(config: Any) -> dict[str, ModelSettings]:
    """The models in a ModelServerConfig message. Raises ServingError where it cannot be obeyed."""
    if config.WhichOneof("config") == "custom_model_config":
        raise invalid_argument("custom_model_config is not supported")
    models: dict[str, ModelSettings] = {}
    for entry in config.model_config_list.config:
        if entry.name in models:
            raise invalid_argument(f"Illegal to list model {entry.name} multiple times in config list")
        _check_entry(entry)
        models[entry.name] = ModelSettings(
            entry.name, entry.base_path, _policy(entry.model_version_policy), dict(entry.version_labels)
        )
    return models


def _check_entry(entry: Any) -> None:
    if entry.model_type and entry.model_platform:
        raise invalid_argument(
            "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform."
        )
    if not entry.model_type and not entry.model_platform:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform."
        )
    if entry.model_type not in (0, _TENSORFLOW):
        raise invalid_argument(f"ModelServerConfig::model_type choice {entry.model_type} not supported.")
    platform = entry.model_platform or "tensorflow"
    if platform != "tensorflow":
        raise invalid_argument(f"Model {entry.name} requests unsupported platform {platform}")
    if not os.path.isabs(entry.base_path):
        raise invalid_argument(
            f"Expected model {entry.name} to have an absolute path or URI; got base_path()={entry.base_path}"
        )


def _policy(policy: Any) -> VersionPolicy:
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(latest=None)
    if choice == "specific":
        if not policy.specific.versions:
            raise invalid_argument("Specific version policy requires at least one version.")
        return VersionPolicy(specific=frozenset(policy.specific.versions))
    return VersionPolicy(latest=policy.latest.num_versions or 1)


@dataclass(frozen=True)
class BatchThreads:
    """The thread pool that all batch queues share."""

    count: int
    name: str


def batch_threads(options: Options) -> BatchThreads:
    """The size and name of the batch thread pool."""
    if options.batching_parameters_file and not options.enable_batching:
        raise ConfigError(
            "server_options.batching_parameters_file is set without setting server_options.enable_batching to true."
        )
    message = _batching_message(options.batching_parameters_file)
    count = message.num_batch_threads.value if message.HasField("num_batch_threads") else schedulable_cpus()
    if count < 1:
        raise ConfigError(f"{options.batching_parameters_file}: num_batch_threads must be positive; was {count}")
    unnamed = "" if options.batching_parameters_file else "model_server_batch_threads"
    return BatchThreads(count, message.thread_pool_name.value or unnamed)


def _batching_message(path: str) -> Any:
    return _read(path, BatchingParameters()) if path else BatchingParameters()


def batching_options(options: Options) -> BatchingOptions:
    """The global batching parameters, defaults filled in. Raises ConfigError."""
    return _batching_options(_batching_message(options.batching_parameters_file))


def per_model_batching(version_path: str) -> BatchingOptions | None:
    """The parameters in a version's own file; None where it has none, which means no batching.

    Raises INVALID_ARGUMENT for a file that cannot be obeyed.
    """
    path = os.path.join(version_path, _PER_MODEL_BATCHING_FILE)
    if not os.path.exists(path):
        return None
    try:
        return _batching_options(_batching_message(path))
    except ConfigError as error:
        raise invalid_argument(str(error)) from None


def _batching_options(message: Any) -> BatchingOptions:
    given: dict[str, Any] = {
        name: getattr(message, name).value
        for name in (
            "max_batch_size",
            "batch_timeout_micros",
            "max_enqueued_batches",
            "enable_large_batch_splitting",
            "max_execution_batch_size",
        )
        if message.HasField(name)
    }
    return BatchingOptions(
        allowed_batch_sizes=tuple(message.allowed_batch_sizes),
        pad_variable_length_inputs=message.pad_variable_length_inputs,
        **given,
    )


def metrics_path(options: Options) -> str | None:
    """Where the metrics page is, or None if it is off. Raises ConfigError."""
    if not options.monitoring_config_file:
        return None
    config = _read(options.monitoring_config_file, MonitoringConfig()).prometheus_config
    return (config.path or _DEFAULT_METRICS_PATH) if config.enable else None


def session_config(options: Options) -> bytes:
    """The ConfigProto for sessions, serialised. Raises ConfigError.

    The flag for both kinds of parallelism counts only where neither has its own.
    """
    config = ConfigProto()
    if options.tensorflow_session_config_file:
        _read(options.tensorflow_session_config_file, config)
    both = options.tensorflow_session_parallelism
    intra, inter = options.tensorflow_intra_op_parallelism, options.tensorflow_inter_op_parallelism
    if intra > 0 and inter > 0 and both > 0:
        raise ConfigError(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, server_options.tensorflow_inter_op_parallelism) "
            "separately. You cannot configure all."
        )
    if intra <= 0 and inter <= 0:
        intra = inter = both
    intra = intra or calm_intra_op_parallelism()
    if intra:
        config.intra_op_parallelism_threads = intra
    if inter:
        config.inter_op_parallelism_threads = inter
    if options.per_process_gpu_memory_fraction:
        config.gpu_options.per_process_gpu_memory_fraction = options.per_process_gpu_memory_fraction
    return config.SerializeToString()


def calm_intra_op_parallelism() -> int:
    """Threads of one operation where no flag says: 1 with a processor or two, else 0, which lets TensorFlow choose.

    The server's own loop and its clients use such a machine's other processor, and an operation that is spread over
    both waits for it: a small convolutional net then takes several times as long.
    """
    return 1 if schedulable_cpus() <= 2 else 0


def max_concurrent_streams(options: Options) -> int | None:
    """The limit of calls on a connection that --grpc_channel_arguments gives, if any.

    The other arguments tune the original's own gRPC library and have no counterpart here. Raises ConfigError.
    """
    limit = None
    for argument in filter(None, options.grpc_channel_arguments.split(",")):
        key, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(f"--grpc_channel_arguments: {argument!r} is not key=value")
        if key == "grpc.max_concurrent_streams":
            if not value.isdigit():
                raise ConfigError(f"--grpc_channel_arguments: {argument!r} is not a whole number")
            limit = int(value)
    return limit


def ssl_context(options: Options) -> ssl.SSLContext | None:
    """The TLS context of the gRPC port, or None for plain text. Raises ConfigError."""
    if not options.ssl_config_file:
        return None
    config = _read(options.ssl_config_file, SSLConfig())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    try:
        _load_key_pair(context, config.server_cert, config.server_key)
        if config.custom_ca:
            context.load_verify_locations(cadata=config.custom_ca)
        if config.client_verify:
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, ValueError, OSError) as error:
        raise ConfigError(f"{options.ssl_config_file}: {error}") from None
    return context


def _load_key_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Load PEM texts into a context, which reads only files: by way of an anonymous one in memory."""
    descriptor = os.memfd_create("key-pair")
    try:
        os.write(descriptor, f"{certificate}\n{key}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
