"""Servers that take time without taking processor, and a real nginx before them: a fleet on one small machine.

The model waits in its graph, so that servers, balancer and load generator do not compete; each server works on one
request at a time.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import requests

from launchpad import children
from launchpad.loadtest import summary
from launchpad.loadtest.generator import LOAD, PROCESSES, USER_CLASS
from launchpad.loadtest.writer import RunWriter
from launchpad.spec import OpenLoop, Traffic

MODEL = "waits"
WARMUP_REQUESTS = 60
MAKE = """
import sys

import numpy as np
import tensorflow as tf
from tensorflow.python.data.experimental.ops import testing

tf1 = tf.compat.v1
lengths = np.random.default_rng(1).gamma(2.0, {mean_us} / 2.0, 64).astype(int)
options = tf.data.Options()
options.autotune.enabled = False
options.experimental_optimization.apply_default_optimizations = False
with tf.Graph().as_default(), tf1.Session() as session:
    waits = None
    for length in lengths:
        wait = tf.data.Dataset.from_tensors(0.0).apply(testing.sleep(int(length)))
        waits = wait if waits is None else waits.concatenate(wait)
    waits = waits.repeat().with_options(options)
    x = tf1.placeholder(tf.float32, [None, 1], name="x")
    y = tf.add(x, tf1.data.make_one_shot_iterator(waits).get_next(), name="y")
    tf1.saved_model.simple_save(session, sys.argv[1], {{"x": x}}, {{"y": y}})
"""
BALANCERS = {"random": "random;", "round robin": "", "least loaded": "least_conn;"}
NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  upstream fleet {{
    {balancer}
    {servers}
    keepalive 256;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://fleet;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_next_upstream off;
    }}
  }}
}}
"""


def make_model(folder: Path, mean_us: int = 8000) -> None:
    """Write a SavedModel whose one signature waits, for one of 64 times in turn, gamma-distributed about a mean."""
    subprocess.run([sys.executable, "-c", MAKE.format(mean_us=mean_us), str(folder)], check=True, capture_output=True)


@contextlib.contextmanager
def servers(
    base: Path, ports: list[tuple[int, int]], model: str = MODEL, threads: int = 1, flags: tuple[str, ...] = ()
) -> Iterator[None]:
    """Run an embedded server on each pair of ports (REST, gRPC) until the block ends."""
    started = []
    try:
        for rest, grpc in ports:
            command = [sys.executable, "-m", "launchpad.modelserver", "--host=127.0.0.1", f"--rest_api_port={rest}"]
            command += [f"--port={grpc}", f"--model_name={model}", f"--model_base_path={base}"]
            command += [f"--rest_api_num_threads={threads}", "--grpc_max_threads=16", *flags]
            started.append(
                subprocess.Popen(
                    command,
                    env=children.environment(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    preexec_fn=children.end_with_parent,
                )
            )
        for rest, _ in ports:
            _await(f"http://127.0.0.1:{rest}/v1/models/{model}/metadata")
        yield
    finally:
        for server in started:
            server.terminate()
        for server in started:
            server.wait(timeout=20)


@contextlib.contextmanager
def nginx(folder: Path, port: int, balancer: str, backends: list[int]) -> Iterator[None]:
    """Run nginx before some REST ports until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "\n    ".join(f"server 127.0.0.1:{backend} max_fails=0;" for backend in backends)
    text = NGINX.format(folder=folder, balancer=BALANCERS[balancer], servers=lines, port=port)
    (folder / "nginx.conf").write_text(text)
    program = subprocess.Popen(
        ["nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")],
        preexec_fn=children.end_with_parent,
    )
    try:
        _await(f"http://127.0.0.1:{port}/v1/models")
        yield
    finally:
        program.terminate()
        program.wait(timeout=20)


def _await(url: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if requests.get(url, timeout=5).status_code < 500:
                return
        except requests.ConnectionError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(url)
        time.sleep(0.1)


def load(root: Path, folder: Path, port: int, rate_rps: float, duration_s: float, seed: int = 1) -> dict:
    """Send Poisson arrivals to a port, from a checkout that declares the model; return the figures of the run.

    Some requests go before, one after the other: pods get load when they are warm.
    """
    line = Traffic(model=MODEL, signature="serving_default")
    for _ in range(WARMUP_REQUESTS):
        url = f"http://127.0.0.1:{port}/v1/models/{MODEL}:predict"
        requests.post(url, json={"instances": [[0.0]]}, timeout=30).raise_for_status()
    profile = OpenLoop(loop="open", rate_rps=rate_rps, duration_s=duration_s, traffic=(line,), seed=seed)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", USER_CLASS, "--headless"]
    command += ["--users=1", "--spawn-rate=1", "--stop-timeout=0", "--loglevel=WARNING", "--only-summary"]
    done = subprocess.run(
        [*command, f"--host=http://127.0.0.1:{port}"],
        cwd=root,
        env={**children.environment(), LOAD: profile.model_dump_json(), PROCESSES: "1"},
        capture_output=True,
        text=True,
        timeout=duration_s + 120,
        check=True,
    )
    writer = RunWriter(folder)
    measured = 0.0
    for text in done.stdout.splitlines():
        with contextlib.suppress(ValueError):
            part = json.loads(text)
            if isinstance(part, dict) and "second" in part:
                writer.add(part["second"], part["lines"])
                measured += part["length_s"]
    writer.close()
    return summary.of_folder(folder, {line.line: MODEL}, measured)["totals"]
