"""Batching parameters as the text proto that the server reads, and back."""

from __future__ import annotations

from pathlib import Path

from launchpad.batching import queue_parameters
from launchpad.spec import Batching, BatchQueue


def batching_parameters(batching: BatchQueue, origin: str = "") -> str:
    """Return BatchingParameters as a text proto: scalars wrapped, allowed_batch_sizes repeated and bare.

    With splitting on, max_execution_batch_size is always written: the server's own default is not max_batch_size.
    origin: the key that the values are from, put behind each as a comment.
    """
    parameters = dict(queue_parameters(batching))
    if isinstance(batching, Batching):
        threads = {"num_batch_threads": batching.num_batch_threads, "thread_pool_name": batching.thread_pool_name}
        parameters |= threads
    parameters["max_execution_batch_size"] = batching.execution_size if batching.enable_large_batch_splitting else None
    lines = []
    for name, value in parameters.items():
        if isinstance(value, tuple):
            lines += [f"{name}: {size}" for size in value]
        elif name == "pad_variable_length_inputs" and value:
            lines.append(f"{name}: true")
        elif value is not None and value is not False:
            lines.append(f"{name} {{ value: {_scalar(value)} }}")
    if not origin:
        return "".join(f"{line}\n" for line in lines)
    width = max(map(len, lines))
    return "".join(f"{line:<{width}}  # {origin}.{line.split()[0].rstrip(':')}\n" for line in lines)


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def read_queue(path: Path) -> BatchQueue:
    """Return the queue's parameters in a file, the server's defaults for those that it leaves out.

    Raises OSError, or ValueError for what is no text proto and for parameters that contradict each other.
    """
    from google.protobuf import text_format

    from launchpad.modelserver import protos

    try:
        message = text_format.Parse(path.read_text(encoding="utf-8"), protos.BatchingParameters())
    except text_format.ParseError as error:
        raise ValueError(f"{path}:{error}") from None
    wrapped = ("batch_timeout_micros", "max_enqueued_batches", "enable_large_batch_splitting")
    given = {name: getattr(message, name).value for name in wrapped if message.HasField(name)}
    largest = message.max_batch_size.value if message.HasField("max_batch_size") else SERVER_MAX_BATCH_SIZE
    if message.enable_large_batch_splitting.value:
        given["max_execution_batch_size"] = message.max_execution_batch_size.value or largest
    return BatchQueue(
        max_batch_size=largest,
        allowed_batch_sizes=tuple(message.allowed_batch_sizes),
        pad_variable_length_inputs=message.pad_variable_length_inputs,
        **given,
    )


SERVER_MAX_BATCH_SIZE = 1000
"""What the server takes where a file names no max_batch_size."""
