"""The command line of tensorflow_model_server: every flag it has, and how it is read.

This module is data and a small parser, free of heavy imports, so that other tools can lint a command line
against the real flags. What a flag does is the business of the module that reads it from `Options`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, get_type_hints

Value = bool | int | float | str


class FlagError(ValueError):
    """A command line that cannot be obeyed; the message is fit for the user."""


@dataclass(frozen=True)
class Flag:
    """One flag of tensorflow_model_server (or, if `own`, of the embedded server alone)."""

    name: str
    type: type[Value]
    default: Value
    help: str
    supported: bool
    own: bool = False


def _flag(default: Value, help: str, *, supported: bool = True, own: bool = False) -> Any:
    return field(default=default, metadata={"help": help, "supported": supported, "own": own})


def schedulable_cpus() -> int:
    """The processors this process may run on, as TensorFlow counts them for its defaults."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Options:
    """The values of all flags; defaults are those of tensorflow_model_server."""

    port: int = _flag(8500, "TCP port of the gRPC API; 0 turns it off.")
    grpc_socket_path: str = _flag("", "UNIX socket on which the gRPC API listens too.")
    rest_api_port: int = _flag(0, "TCP port of the REST API; 0 turns it off. Must differ from --port.")
    rest_api_num_threads: int = _flag(
        4 * schedulable_cpus(), "REST requests worked on at once; further ones wait their turn."
    )
    rest_api_timeout_in_ms: int = _flag(30000, "Time limit of a REST request, in milliseconds.")
    rest_api_enable_cors_support: bool = _flag(False, "Adds CORS headers to REST answers.")
    enable_batching: bool = _flag(False, "Joins concurrent requests into batches.")
    allow_version_labels_for_unavailable_models: bool = _flag(
        False, "Lets an unused version label be given to a version that is not available yet."
    )
    batching_parameters_file: str = _flag("", "BatchingParameters in text format, in place of the defaults.")
    enable_per_model_batching_parameters: bool = _flag(
        False,
        "Reads batching_params.pbtxt from each version directory; only the thread pool's size and name "
        "then come from --batching_parameters_file. Needs --enable_batching.",
    )
    model_config_file: str = _flag(
        "", "ModelServerConfig in text format; --model_name and --model_base_path are then ignored."
    )
    model_config_file_poll_wait_seconds: int = _flag(
        0, "Seconds between readings of --model_config_file; 0 reads it once."
    )
    model_name: str = _flag("default", "Name of the one model, without --model_config_file.")
    model_base_path: str = _flag("", "Base path of the one model, without --model_config_file.")
    num_load_threads: int = _flag(0, "Threads that load versions; 0 loads one after the other.")
    num_unload_threads: int = _flag(0, "Threads that unload versions; 0 unloads one after the other.")
    max_num_load_retries: int = _flag(5, "Further attempts after a load has failed.")
    load_retry_interval_micros: int = _flag(
        60_000_000, "Microseconds between attempts to load; negative does not wait."
    )
    file_system_poll_wait_seconds: int = _flag(
        1, "Seconds between looks for new versions; 0 looks once, negative never."
    )
    flush_filesystem_caches: bool = _flag(
        True, "Drops file-system caches of model files after loading.", supported=False
    )
    tensorflow_session_parallelism: int = _flag(
        0, "Threads of both kinds for running a session; 0 lets TensorFlow choose."
    )
    tensorflow_session_config_file: str = _flag(
        "", "ConfigProto in text format on which the sessions' options are based."
    )
    tensorflow_intra_op_parallelism: int = _flag(0, "Threads that one operation may use; 0 lets TensorFlow choose.")
    tensorflow_inter_op_parallelism: int = _flag(
        0, "Operations that may run at the same time; 0 lets TensorFlow choose."
    )
    use_alts_credentials: bool = _flag(False, "Uses Google ALTS credentials for gRPC.", supported=False)
    ssl_config_file: str = _flag("", "SSLConfig in text format: makes the gRPC API secure.")
    platform_config_file: str = _flag(
        "", "PlatformConfigMap in text format, in place of the TensorFlow platform.", supported=False
    )
    per_process_gpu_memory_fraction: float = _flag(
        0.0, "Fraction of GPU memory to take, 0.0 to 1.0; 0.0 lets TensorFlow choose."
    )
    saved_model_tags: str = _flag("serve", "Comma-separated tags of the MetaGraphDef to load.")
    grpc_channel_arguments: str = _flag("", "Comma-separated key=value arguments of the gRPC server.")
    grpc_max_threads: int = _flag(4 * schedulable_cpus(), "gRPC calls worked on at once; further ones are refused.")
    enable_model_warmup: bool = _flag(True, "Replays a version's warmup requests before it is available.")
    num_request_iterations_for_warmup: int = _flag(0, "How often each warmup request is replayed; used if above 0.")
    version: bool = _flag(False, "Prints the version and exits.")
    monitoring_config_file: str = _flag("", "MonitoringConfig in text format: turns the metrics page on.")
    remove_unused_fields_from_bundle_metagraph: bool = _flag(
        True, "Drops the parts of a MetaGraphDef that serving does not use.", supported=False
    )
    prefer_tflite_model: bool = _flag(False, "Serves model.tflite where a version has one.", supported=False)
    num_tflite_pools: int = _flag(
        schedulable_cpus(), "TensorFlow Lite interpreter pools of a session.", supported=False
    )
    num_tflite_interpreters_per_pool: int = _flag(1, "TensorFlow Lite interpreters of a pool.", supported=False)
    enable_signature_method_name_check: bool = _flag(
        False, "Insists on the method name of a signature for classify and regress."
    )
    xla_cpu_compilation_enabled: bool = _flag(False, "Lets XLA compile clusters for the CPU.", supported=False)
    xla_gpu_compilation_enabled: bool = _flag(False, "Lets XLA compile clusters for CPU and GPU.", supported=False)
    enable_profiler: bool = _flag(True, "Offers the profiler service.", supported=False)
    thread_pool_factory_config_file: str = _flag(
        "", "ThreadPoolConfig in text format for the sessions' thread pools.", supported=False
    )
    mixed_precision: str = _flag("", "Runs models in mixed precision, for example bfloat16.", supported=False)
    skip_initialize_tpu: bool = _flag(False, "Leaves a TPU uninitialised.", supported=False)
    enable_grpc_healthcheck_service: bool = _flag(False, "Offers the standard gRPC health service.")
    enable_serialization_as_tensor_content: bool = _flag(
        False, "Answers gRPC Predict with tensor_content in place of typed value lists."
    )

    host: str = _flag("127.0.0.1", "Address on which both APIs listen.", own=True)
    max_request_bytes: int = _flag(
        256 * 1024 * 1024, "Largest REST body accepted, in bytes, before and after decompression.", own=True
    )
    share_ports: bool = _flag(
        False,
        "Lets another server started with this flag listen on the same ports; SIGUSR2 makes the older one leave them "
        "to it without losing a request.",
        own=True,
    )
    shutdown_grace_seconds: float = _flag(30.0, "Time that requests in flight have to finish after SIGTERM.", own=True)


def _table() -> dict[str, Flag]:
    types = get_type_hints(Options)
    table = {}
    for entry in fields(Options):
        assert entry.default is not MISSING
        table[entry.name] = Flag(entry.name, types[entry.name], entry.default, **entry.metadata)
    return table


_ALL = _table()

FLAGS: dict[str, Flag] = {name: flag for name, flag in _ALL.items() if not flag.own}
"""The flags of tensorflow_model_server by name."""

OWN_FLAGS: dict[str, Flag] = {name: flag for name, flag in _ALL.items() if flag.own}
"""The flags that only the embedded server has."""

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def nearest(name: str) -> str | None:
    """The flag whose name is most like `name`, or None where none is alike."""
    alike = get_close_matches(name, _ALL, n=1, cutoff=0.6)
    return alike[0] if alike else None


def parse(argv: Sequence[str]) -> Options:
    """Read a command line: `--flag=value`, `--flag value`, and `--flag` alone for true. The last one counts.

    Raises FlagError for a flag that does not exist (naming the nearest that does) and for a value that is not
    of the flag's type.
    """
    values: dict[str, Any] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, text = word.lstrip("-").partition("=")
        flag = _ALL.get(name) if word.startswith("-") else None
        if flag is None:
            raise FlagError(_unknown(word, name))
        if not equals:
            text = _take_value(flag, words)
        values[name] = _convert(flag, text)
    return Options(**values)


def _unknown(word: str, name: str) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}: flags are written --name=value"
    guess = nearest(name)
    return f"unknown flag --{name}" + (f": did you mean --{guess}?" if guess else "")


def _take_value(flag: Flag, words: list[str]) -> str:
    if flag.type is bool:
        return words.pop(0) if words and words[0].lower() in _BOOLEANS else "true"
    if not words or words[0].startswith("--"):
        raise FlagError(f"--{flag.name} needs a value: --{flag.name}=...")
    return words.pop(0)


def _convert(flag: Flag, text: str) -> Value:
    try:
        return _BOOLEANS[text.lower()] if flag.type is bool else flag.type(text)
    except (KeyError, ValueError):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[flag.type]
        raise FlagError(f"--{flag.name}={text}: expected {kind}") from None
