"""Batches as TensorFlow Serving forms them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from launchpad.modelserver.batching import BatchingOptions, BatchQueue
from tests.waiting import wait_for

from .conftest import Server, Start

_STEP_S = 0.001


class _Rows:
    """A task that is nothing but its size."""

    def __init__(self, size: int) -> None:
        self.size = size

    def split(self, sizes: list[int]) -> list[_Rows]:
        return [_Rows(size) for size in sizes]


def _formed(options: BatchingOptions, script: list[tuple[float, int]]) -> list[int]:
    """The padded sizes of the batches that `BatchQueue` forms with one thread that is always free."""
    queue: BatchQueue[_Rows] = BatchQueue(options)
    arrivals = list(script)
    sizes, now = [], 0.0
    while arrivals or queue.ready_at() is not None:
        while arrivals and arrivals[0][0] <= now:
            queue.add(_Rows(arrivals.pop(0)[1]), now)
        while batch := queue.take(now):
            sizes.append(options.padded(batch.size))
        now += _STEP_S
    return sizes


_SCRIPT = [
    *[(0.00, 2), (0.05, 3), (0.10, 2)],  # a batch that is never full runs when its first task has waited enough
    *[(0.50, 5), (0.55, 4)],  # what does not fit closes the batch before it
    *[(1.00, 8)],  # a full batch runs at once
    *[(1.50, 1), (1.65, 1), (1.75, 1)],  # the timeout runs from the first task on, not the last
    *[(2.20, 3), (2.25, 3), (2.30, 3), (2.35, 3)],
]


def test_the_batches_formed_are_those_of_tensorflows_own_scheduler() -> None:
    cases: list[dict[str, Any]] = [
        {
            "parameters": {
                "max_batch_size": 8,
                "batch_timeout_micros": 200_000,
                "enable_large_batch_splitting": False,
            },
            "script": _SCRIPT,
        },
        {
            "parameters": {
                "max_batch_size": 8,
                "batch_timeout_micros": 200_000,
                "allowed_batch_sizes": [4, 8],
                "enable_large_batch_splitting": False,
            },
            "script": _SCRIPT,
        },
        {
            "parameters": {
                "max_batch_size": 20,
                "batch_timeout_micros": 200_000,
                "allowed_batch_sizes": [4, 8],
                "enable_large_batch_splitting": True,
            },
            "script": [*_SCRIPT, (3.00, 3), (3.05, 18)],
        },
    ]
    for case, expected in zip(cases, _really_formed(cases), strict=True):
        parameters = dict(case["parameters"])
        allowed = tuple(parameters.pop("allowed_batch_sizes", ()))
        if parameters.get("enable_large_batch_splitting"):
            parameters["max_execution_batch_size"] = allowed[-1]
        options = BatchingOptions(allowed_batch_sizes=allowed, **parameters)
        assert _formed(options, case["script"]) == expected


def _really_formed(cases: list[dict[str, Any]]) -> list[list[int]]:
    script = Path(__file__).with_name("real_batches.py")
    processes = [
        subprocess.Popen([sys.executable, str(script)], stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True)
        for _ in cases
    ]
    for process, case in zip(processes, cases, strict=True):
        assert process.stdin is not None
        process.stdin.write(json.dumps(case))
        process.stdin.close()
        process.stdin = None
    return [json.loads(process.communicate()[0]) for process in processes]


def _batching(start: Start, model: Path, folder: Path, parameters: str, *flags: str) -> Server:
    (folder / "batching.config").write_text(parameters)
    (folder / "monitoring.config").write_text("prometheus_config { enable: true }")
    return start(
        "--model_name=m",
        f"--model_base_path={model}",
        "--enable_batching",
        f"--batching_parameters_file={folder / 'batching.config'}",
        f"--monitoring_config_file={folder / 'monitoring.config'}",
        "--rest_api_num_threads=64",
        *flags,
    )


def _together(server: Server, requests: list[Any]) -> list[tuple[int, Any]]:
    """The answers to requests that are sent at the same time."""
    answers: list[tuple[int, Any]] = [(0, None)] * len(requests)

    def ask(index: int) -> None:
        answers[index] = server.rest("/v1/models/m:predict", requests[index])

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _metric(server: Server, name: str) -> float:
    _, page = server.rest("/monitoring/prometheus/metrics")
    match = re.search(rf"^:tensorflow:serving:batching_session:{name} (\S+)$", page, re.MULTILINE)
    return float(match[1]) if match else 0.0


def test_concurrent_requests_share_a_padded_batch_and_each_gets_its_own_rows(
    start_server: Start, models: Path, tmp_path: Path
) -> None:
    server = _batching(
        start_server,
        models / "scale",
        tmp_path,
        "max_batch_size { value: 16 } batch_timeout_micros { value: 500000 } allowed_batch_sizes: 8 "
        "allowed_batch_sizes: 16 num_batch_threads { value: 2 }",
    )
    answers = _together(server, [{"instances": [float(i), float(i)]} for i in range(3)])

    assert [status for status, _ in answers] == [200] * 3
    rows = [[row["y"] for row in answer["predictions"]] for _, answer in answers]
    assert rows == [[3.0 * i, 3.0 * i] for i in range(3)]
    assert {row["size"] for _, answer in answers for row in answer["predictions"]} == {8.0}
    assert _metric(server, "wrapped_run_count{}") == 1
    assert _metric(server, r'padding_size_sum\{execution_batch_size="8"\}') == 2
    assert _metric(server, r"processed_batch_size_sum\{\}") == 8
    assert _metric(server, r"input_batch_size_count\{\}") == 3
    assert _metric(server, r'queuing_latency_count\{thread_pool_name=""\}') == 3


def test_a_request_with_too_many_rows_is_refused(start_server: Start, models: Path, tmp_path: Path) -> None:
    server = _batching(start_server, models / "scale", tmp_path, "max_batch_size { value: 4 }")
    assert server.rest("/v1/models/m:predict", {"instances": [1.0] * 5}) == (
        400,
        {"error": "Task size 5 is larger than maximum input batch size 4"},
    )


def test_a_large_request_is_split_where_that_is_enabled(start_server: Start, models: Path, tmp_path: Path) -> None:
    server = _batching(
        start_server,
        models / "scale",
        tmp_path,
        "max_batch_size { value: 100 } max_execution_batch_size { value: 4 } "
        "enable_large_batch_splitting { value: true }",
    )
    status, answer = server.rest("/v1/models/m:predict", {"instances": [float(i) for i in range(10)]})
    assert status == 200
    assert [row["y"] for row in answer["predictions"]] == [3.0 * i for i in range(10)]
    assert [row["size"] for row in answer["predictions"]] == [4.0] * 8 + [2.0] * 2


def test_a_full_queue_refuses_with_503(start_server: Start, models: Path, tmp_path: Path) -> None:
    server = _batching(
        start_server,
        models / "slow",
        tmp_path,
        "max_batch_size { value: 1 } max_enqueued_batches { value: 2 } num_batch_threads { value: 1 }",
    )
    answers = _together(server, [{"instances": [1.0]}] * 8)
    refused = [answer for status, answer in answers if status == 503]
    assert {status for status, _ in answers} == {200, 503}
    assert {answer["error"] for answer in refused} == {
        "The batch scheduling queue to which this task was submitted is full; currently 2 batches enqueued and "
        "max_enqueued_batches is 2"
    }


def test_rows_of_different_lengths_are_padded_where_that_is_enabled(
    start_server: Start, models: Path, tmp_path: Path
) -> None:
    server = _batching(
        start_server,
        models / "sums",
        tmp_path,
        "max_batch_size { value: 2 } batch_timeout_micros { value: 500000 } pad_variable_length_inputs: true",
    )
    answers = _together(server, [{"instances": [[0.0, 1.0, 2.0]]}, {"instances": [[0.0]]}])
    assert [answer["predictions"][0] for _, answer in answers] == [
        {"y": 3.0, "width": 3.0},
        {"y": 0.0, "width": 3.0},
    ]


def test_parameters_per_model_come_from_the_version_and_a_version_without_is_not_batched(
    start_server: Start, models: Path, tmp_path: Path
) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(models / "scale", base)
    (base / "2" / "batching_params.pbtxt").write_text("max_batch_size { value: 2 }")
    flag = "--enable_per_model_batching_parameters"
    server = _batching(start_server, base, tmp_path, "max_batch_size { value: 1 }", flag)
    assert server.rest("/v1/models/m:predict", {"instances": [1.0] * 2})[0] == 200
    assert server.rest("/v1/models/m:predict", {"instances": [1.0] * 3})[0] == 400

    shutil.copytree(models / "scale" / "1", base / "tmp")
    (base / "tmp").rename(base / "3")
    wait_for(lambda: server.states("m") == {"3": "AVAILABLE", "2": "END"})
    assert server.rest("/v1/models/m:predict", {"instances": [1.0] * 3})[0] == 200


def test_a_request_without_rows_takes_nothing_from_those_it_is_batched_with(
    start_server: Start, models: Path, tmp_path: Path
) -> None:
    parameters = "max_batch_size { value: 8 } batch_timeout_micros { value: 300000 }"
    parameters += " allowed_batch_sizes: 4 allowed_batch_sizes: 8"
    server = _batching(start_server, models / "scale", tmp_path, parameters)
    alone = server.rest("/v1/models/m:predict", {"inputs": [3.0]})
    assert alone[0] == 200
    assert _together(server, [{"inputs": [3.0]}, {"inputs": []}, {"inputs": []}])[0] == alone
    status, answer = server.rest("/v1/models/m:predict", {"inputs": []})
    assert status == 200 and answer["outputs"]["y"] == []


def test_allowed_sizes_that_contradict_the_maximum_fail_the_load(
    start_server: Start, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "batching.config").write_text("max_batch_size { value: 8 } allowed_batch_sizes: 4")
    server = start_server(
        "--model_name=m",
        f"--model_base_path={models / 'scale'}",
        "--enable_batching",
        f"--batching_parameters_file={tmp_path / 'batching.config'}",
        "--max_num_load_retries=0",
        wait=False,
    )
    assert server.process.wait(30) == 3
    assert "Last entry in allowed_batch_sizes must match max_batch_size" in server.log()
