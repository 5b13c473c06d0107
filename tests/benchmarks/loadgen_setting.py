"""What the benchmarks of the load generator share: a checkout with one request and its answer, places to run, results.

Nothing here measures.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from launchpad import machine
from launchpad.client import predict_request
from launchpad.declaration import FILE
from launchpad.examples import Examples
from launchpad.layout import Layout
from launchpad.modelserver import protos

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
MODEL, SIGNATURE, WIDTH = "digits", "serving_default", 784
PATH = f"/v1/models/{MODEL}:predict"
CONNECTIONS = 16

CORES = sorted(os.sched_getaffinity(0))

PIXELS = np.random.default_rng(1).random((1, WIDTH)).round(5)
SCORES = np.array([[0.05, 0.05, 0.5, 0.05, 0.05, 0.05, 0.05, 0.1, 0.05, 0.05]])
REST_BODY = orjson.dumps({"signature_name": SIGNATURE, "instances": PIXELS.tolist()})
REST_ANSWER = orjson.dumps({"predictions": SCORES.tolist()})


def grpc_request() -> Any:
    return predict_request(MODEL, SIGNATURE, {"pixels": PIXELS})


def grpc_answer() -> bytes:
    response = protos.PredictResponse()
    response.outputs["scores"].CopyFrom(predict_request(MODEL, SIGNATURE, {"scores": SCORES}).inputs["scores"])
    return response.SerializeToString()


def checkout(root: Path, rest_port: int, grpc_port: int) -> Layout:
    """Make a checkout whose one model has one example: every request is the same 6.2 KB, every answer too."""
    (root / FILE).write_text(
        f"name: benchmark\nmodels:\n  {MODEL}: {{source: model.py:build}}\n"
        f"serving: {{ports: {{rest: {rest_port}, grpc: {grpc_port}}}}}\n"
        f"loadtest: {{profile: p, profiles: {{p: {{users: {CONNECTIONS}, duration_s: 3600}}}}}}\n"
    )
    layout = Layout(root)
    examples = layout.evidence(MODEL, 1) / "examples.npz"
    examples.parent.mkdir(parents=True, exist_ok=True)
    Examples({SIGNATURE: {"pixels": PIXELS}}, {SIGNATURE: {"scores": SCORES}}, None).save(examples)
    layout.locustfile.parent.mkdir(exist_ok=True)
    shutil.copy2(ROOT / "loadtests" / "locustfile.py", layout.locustfile)
    return layout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pinned(core: int) -> list[str]:
    """Return the words that keep a command on a core of its own; none where there is only one."""
    return ["taskset", "-c", str(CORES[core])] if len(CORES) > core and len(CORES) > 1 else []


def go_first() -> bool:
    """Have this process and those it starts go ahead of what else the machine does, on the first core; tell if so."""
    os.sched_setaffinity(0, CORES[:1])
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        return False
    return True


def step_back() -> None:
    """Have this process, not those it started, wait behind others again."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@contextmanager
def awake() -> Iterator[None]:
    """Keep the cores from sleeping, with work that gives way to any other: waking up takes a virtual machine 0.1 ms."""
    work = [sys.executable, "-c", "while True: pass"]
    keepers = [subprocess.Popen(["chrt", "--idle", "0", *pinned(core), *work]) for core in range(len(CORES))]
    try:
        yield
    finally:
        for keeper in keepers:
            keeper.kill()
            keeper.wait()


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


@contextmanager
def running(command: list[str], port: int, **how: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that listens on `port`, stopped in the end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how)
    try:
        limit = time.monotonic() + 30
        while not listens(port):
            if process.poll() is not None or time.monotonic() > limit:
                raise SystemExit(f"{' '.join(command)} does not come up")
            time.sleep(0.01)
        yield process
    finally:
        stop(process)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def stop(process: subprocess.Popen[Any]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def fixed_server(kind: str, *words: str) -> Iterator[int]:
    """One of `fixed_servers` on the last core; yields its port."""
    port = free_port()
    command = [*pinned(1), sys.executable, "-m", "tests.benchmarks.fixed_servers", kind, str(port), *words]
    with running(command, port, cwd=ROOT, env=environment()):
        yield port


def install(packages: Path, *names: str) -> None:
    """Install packages aside, for the run only."""
    installer = ["uv", "pip", "install"] if shutil.which("uv") else [sys.executable, "-m", "pip", "install"]
    target = [f"--python={sys.executable}"] if installer[0] == "uv" else []
    subprocess.run([*installer, "-q", *target, "--no-deps", "--target", str(packages), *names], check=True)


def keep(name: str, setting: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write results as JSON, with the machine that they were measured on."""
    RESULTS.mkdir(exist_ok=True)
    document = {"measured": time.strftime("%Y-%m-%d"), "machine": machine.describe(), "setting": setting, "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
