"""How fast the embedded model server is, beside what people use instead, client and server sharing the machine.

    python -m tests.benchmarks.modelserver                 # everything; a few minutes, needs hey and nginx
    python -m tests.benchmarks.modelserver --only rest     # rest, grpc, memory or alternatives
    python -m tests.benchmarks.modelserver --seconds 10 --rounds 3

Every figure is the median of `--rounds` rounds, and the servers take turns within a round, so that what else the
machine does meets them all alike: compare ratios within a run. `prototype` is what an engineer writes in an
hour (uvicorn, orjson, one thread that runs whatever waits as one batch); `nginx` answers a fixed text and stands for
the machine. The alternatives' packages are installed aside, for the run only.

Where a request's time goes on the embedded server (dense net, one row of 784 numbers, two 2.x GHz cores), in
microseconds of the event loop's time: HTTP 5, JSON to tensor 12, the graph 20 to 25, the answer's text 7, routing,
counting and bookkeeping 8, and about as much again as all of Python's share for caches gone cold in between. A write
that wakes a sleeping client costs up to 40 more, which is why answers are written together.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 784
BATCHING = (
    "max_batch_size { value: 64 } batch_timeout_micros { value: 0 } num_batch_threads { value: 1 } "
    "max_enqueued_batches { value: 1000 }"
)


@dataclass(frozen=True)
class Contender:
    """A server to be measured: how it is started, and where and what it is asked."""

    name: str
    command: list[str]
    port: int
    path: str
    body: bytes
    environment: dict[str, str]


@dataclass(frozen=True)
class Reading:
    """What one round of load gave."""

    per_second: float
    p99_ms: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(
    command: list[str], port: int, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[Any]]:
    """A process that listens on `port`, stopped in the end."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | (environment or {}),
        start_new_session=True,
    )
    try:
        limit = time.monotonic() + 90
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > limit:
                    raise SystemExit(f"{' '.join(command)} does not come up") from None
                time.sleep(0.01)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def hey(port: int, path: str, body_path: Path, connections: int, seconds: float) -> Reading:
    """One load with hey; every answer must be 200."""
    output = subprocess.run(
        [
            *["hey", "-z", f"{seconds}s", "-c", str(connections), "-m", "POST", "-T", "application/json"],
            *["-D", str(body_path), f"http://127.0.0.1:{port}{path}"],
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    statuses = set(re.findall(r"\[(\d{3})\]\t\d+ responses", output))
    if statuses != {"200"}:
        raise SystemExit(f"port {port}{path} answered {statuses or 'nothing'}:\n{output}")
    rate, p99 = re.search(r"Requests/sec:\s+(\S+)", output), re.search(r"99% in (\S+)", output)
    assert rate and p99
    return Reading(float(rate[1]), float(p99[1]) * 1000)


def measure(contenders: list[Contender], connections: list[int], seconds: float, rounds: int) -> None:
    """Loads of each contender in turn, round after round, and a table of the medians."""
    readings: dict[tuple[str, int], list[Reading]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for contender in contenders:
                body_path = Path(folder) / "body.json"
                body_path.write_bytes(contender.body)
                with running(contender.command, contender.port, contender.environment):
                    hey(contender.port, contender.path, body_path, 16, 1)
                    for count in connections:
                        reading = hey(contender.port, contender.path, body_path, count, seconds)
                        readings.setdefault((contender.name, count), []).append(reading)
    print(f"{'':34}{'connections':>12}{'requests/s':>12}{'p99 ms':>9}{'of nginx':>10}{'of prototype':>14}")
    for (name, count), values in readings.items():
        rate = statistics.median(value.per_second for value in values)
        p99 = statistics.median(value.p99_ms for value in values)
        nginx = _rate(readings, "nginx", 16)
        prototype = _rate(readings, "prototype " + name.split()[1] if " " in name else "", count)
        print(
            f"{name:34}{count:12}{rate:12.0f}{p99:9.1f}"
            f"{rate / nginx if nginx else 0:10.3f}{rate / prototype if prototype else 0:14.2f}"
        )


def _rate(readings: dict[tuple[str, int], list[Reading]], name: str, count: int) -> float:
    values = readings.get((name, count), [])
    return statistics.median(value.per_second for value in values) if values else 0.0


# --- what is measured ---------------------------------------------------------------------------------------


def digit_models(folder: Path) -> dict[str, Path]:
    """The base paths of the dense and the convolutional digit model: the project's own, or two like them."""
    own = {kind: ROOT / "models" / f"digits-{kind}" / "versions" for kind in ("mlp", "cnn")}
    if all(path.is_dir() for path in own.values()):
        return own
    subprocess.run([sys.executable, __file__, "make-models", str(folder)], check=True, capture_output=True)
    return {kind: folder / kind for kind in own}


def make_models(folder: Path) -> None:
    """Untrained models of the digit models' architecture and signatures."""
    import tensorflow as tf

    layers = tf.keras.layers
    dense = [layers.Dense(128, "relu"), layers.Dense(10, "softmax")]
    convolutional = [
        layers.Reshape((28, 28, 1)),
        *[layers.Conv2D(16, 3, activation="relu"), layers.MaxPool2D()],
        *[layers.Conv2D(32, 3, activation="relu"), layers.MaxPool2D()],
        *[layers.Flatten(), layers.Dense(64, "relu"), layers.Dense(10, "softmax")],
    ]
    for kind, stack in (("mlp", dense), ("cnn", convolutional)):
        model = tf.keras.Sequential([layers.Input((WIDTH,)), *stack])

        def from_bytes(pixels: Any, model: Any = model) -> Any:
            rows = tf.reshape(tf.io.decode_raw(pixels, tf.uint8, fixed_length=WIDTH), [-1, WIDTH])
            return {"probabilities": model(tf.cast(rows, tf.float32) / 255.0)}

        archive = tf.keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint(
            "serving_default",
            lambda pixels, model=model: {"probabilities": model(pixels)},
            [tf.TensorSpec([None, WIDTH], tf.float32, name="pixels")],
        )
        archive.add_endpoint("bytes", from_bytes, [tf.TensorSpec([None], tf.string, name="pixels")])
        archive.write_out(str(folder / kind / "1"))


def bodies() -> dict[str, bytes]:
    """One instance as JSON: 784 floats, and the same as bytes."""
    dice = random.Random(1)
    floats = {"instances": [[round(dice.random(), 4) for _ in range(WIDTH)]]}
    encoded = base64.b64encode(dice.randbytes(WIDTH)).decode()
    as_bytes = {"signature_name": "bytes", "instances": [{"b64": encoded}]}
    return {"floats": json.dumps(floats).encode(), "bytes": json.dumps(as_bytes).encode()}


def embedded(models: dict[str, Path], folder: Path, *flags: str) -> tuple[list[str], int, int]:
    """The command that serves both models, and its REST and gRPC ports."""
    config = folder / "models.config"
    entries = [
        f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" }}' for name, path in models.items()
    ]
    config.write_text("model_config_list { " + " ".join(entries) + " }")
    rest_port, grpc_port = free_port(), free_port()
    command = [sys.executable, "-m", "launchpad.modelserver", f"--rest_api_port={rest_port}", f"--port={grpc_port}"]
    command += [f"--model_config_file={config}", "--rest_api_num_threads=128", "--grpc_max_threads=128", *flags]
    return command, rest_port, grpc_port


def rest_contenders(models: dict[str, Path], folder: Path, packages: Path) -> list[Contender]:
    """nginx, the prototype, and the embedded server with and without batching."""
    batching = folder / "batching.config"
    batching.write_text(BATCHING)
    plain, plain_port, _ = embedded(models, folder)
    batched_flags = ("--enable_batching", f"--batching_parameters_file={batching}")
    batched, batched_port, _ = embedded(models, folder, *batched_flags)
    text = bodies()
    contenders = [nginx(folder, text["floats"])]
    for kind in models:
        port = free_port()
        command = [sys.executable, __file__, "prototype", str(models[kind]), str(port)]
        environment = {"PYTHONPATH": str(packages)}
        contenders.append(Contender(f"prototype {kind}", command, port, "/", text["floats"], environment))
        path = f"/v1/models/{kind}:predict"
        contenders.append(Contender(f"embedded {kind}", plain, plain_port, path, text["floats"], {}))
        contenders.append(Contender(f"embedded {kind} batching", batched, batched_port, path, text["floats"], {}))
    path = "/v1/models/mlp:predict"
    contenders.append(Contender("embedded mlp bytes", plain, plain_port, path, text["bytes"], {}))
    contenders.append(Contender("embedded mlp bytes batching", batched, batched_port, path, text["bytes"], {}))
    return contenders


def nginx(folder: Path, body: bytes) -> Contender:
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(
        f"worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log /dev/null; events {{}} "
        f"http {{ access_log off; keepalive_requests 100000000; server {{ listen 127.0.0.1:{port}; "
        "location / { return 200 '{\"predictions\": [[0.1, 0.2, 0.7]]}'; } } }"
    )
    return Contender("nginx", ["nginx", "-c", str(config)], port, "/", body, {})


def alternatives(models: dict[str, Path], packages: Path) -> list[Contender]:
    """What people use instead, for the dense net."""
    body = bodies()["floats"]
    contenders = []
    for name, path in (("fastapi", "/predict"), ("litserve", "/predict")):
        port = free_port()
        command = [sys.executable, __file__, name, str(models["mlp"]), str(port)]
        contenders.append(Contender(f"{name} mlp", command, port, path, body, {"PYTHONPATH": str(packages)}))
    return contenders


def install(packages: Path, *names: str) -> None:
    """Install packages aside, without those that are here anyway."""
    installer = ["uv", "pip", "install"] if shutil.which("uv") else [sys.executable, "-m", "pip", "install"]
    subprocess.run([*installer, "-q", "--target", str(packages), *names], check=True)
    for shadowing in ("numpy", "protobuf", "google"):
        shutil.rmtree(packages / shadowing, ignore_errors=True)


# --- the servers that are compared with ---------------------------------------------------------------------


def _load(base_path: str) -> Any:
    import tensorflow as tf

    newest = max(Path(base_path).iterdir(), key=lambda path: int(path.name) if path.name.isdigit() else -1)
    model = tf.saved_model.load(str(newest))
    function = model.signatures["serving_default"]
    function.model = model
    return lambda rows: next(iter(function(pixels=tf.constant(rows)).values())).numpy()


def serve_prototype(base_path: str, port: int) -> None:
    import asyncio
    from queue import Empty, SimpleQueue

    import numpy as np
    import orjson
    import uvicorn

    predict, waiting = _load(base_path), SimpleQueue()  # type: ignore[var-annotated]

    def work() -> None:
        while True:
            batch = [waiting.get()]
            try:
                while len(batch) < 64:
                    batch.append(waiting.get_nowait())
            except Empty:
                pass
            result = predict(np.concatenate([rows for rows, _ in batch]))
            loop = batch[0][1].get_loop()
            loop.call_soon_threadsafe(lambda batch=batch, result=result: finish(batch, result))

    def finish(batch: list[Any], result: Any) -> None:
        start = 0
        for rows, future in batch:
            future.set_result(result[start : start + len(rows)])
            start += len(rows)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        future = asyncio.get_running_loop().create_future()
        waiting.put((np.asarray(orjson.loads(body)["instances"], np.float32), future))
        answer = orjson.dumps({"predictions": await future}, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    threading.Thread(target=work, daemon=True).start()
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def serve_fastapi(base_path: str, port: int) -> None:
    import fastapi
    import numpy as np
    import uvicorn

    predict, app = _load(base_path), fastapi.FastAPI()

    @app.post("/predict")
    def answer(body: dict[str, Any] = fastapi.Body()) -> dict[str, Any]:  # noqa: B008
        return {"predictions": predict(np.asarray(body["instances"], np.float32)).tolist()}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


try:
    import litserve
except ImportError:
    litserve = None

if litserve is not None:

    class Digits(litserve.LitAPI):  # type: ignore[misc]
        """At the top level, since LitServe's processes import it from here."""

        def setup(self, device: str) -> None:
            self.predict_rows = _load(sys.argv[2])

        def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe goes by annotations
            import numpy as np

            return np.asarray(request["instances"][0], np.float32)

        def batch(self, inputs: list[Any]) -> Any:
            import numpy as np

            return np.stack(inputs)

        def predict(self, rows: Any) -> Any:
            return self.predict_rows(rows)

        def unbatch(self, output: Any) -> Any:
            return list(output)

        def encode_response(self, output: Any) -> Any:
            return {"predictions": [output.tolist()]}


def serve_litserve(base_path: str, port: int) -> None:
    server = litserve.LitServer(Digits(max_batch_size=64, batch_timeout=0.001), accelerator="cpu")
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False)


# --- gRPC, start and memory ---------------------------------------------------------------------------------


def _ask_by_grpc(port: int, seconds: float, threads: int, result: Any) -> None:
    """A client process: as many threads that each keep one Predict call under way."""
    import grpc

    from launchpad.modelserver import protos

    request = protos.PredictRequest()
    request.model_spec.name = "mlp"
    tensor = request.inputs["pixels"]
    tensor.dtype, tensor.tensor_content = 1, bytes(4 * WIDTH)
    for size in (1, WIDTH):
        tensor.tensor_shape.dim.add(size=size)
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    predict = channel.unary_unary(
        "/tensorflow.serving.PredictionService/Predict",
        request_serializer=protos.PredictRequest.SerializeToString,
        response_deserializer=protos.PredictResponse.FromString,
    )
    predict(request, timeout=30)
    latencies: list[float] = []
    end = time.monotonic() + seconds

    def ask() -> None:
        while (started := time.monotonic()) < end:
            predict(request, timeout=30)
            latencies.append(time.monotonic() - started)

    workers = [threading.Thread(target=ask) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    result.put(latencies)


def measure_grpc(models: dict[str, Path], folder: Path, seconds: float, rounds: int) -> None:
    """Two client processes of 8 threads each, one row of tensor_content a call."""
    command, _, port = embedded(models, folder)
    rates, p99s = [], []
    context = multiprocessing.get_context("spawn")
    for _ in range(rounds):
        with running(command, port):
            results = context.Queue()
            clients = [context.Process(target=_ask_by_grpc, args=(port, seconds, 8, results)) for _ in range(2)]
            for client in clients:
                client.start()
            latencies = sorted(results.get() + results.get())
            for client in clients:
                client.join()
            rates.append(len(latencies) / seconds)
            p99s.append(latencies[int(len(latencies) * 0.99)] * 1000)
    print(f"gRPC Predict, tensor_content, 2 x 8 threads: {statistics.median(rates):.0f} calls/s, "
          f"p99 {statistics.median(p99s):.1f} ms")  # fmt: skip


def measure_start_and_memory(models: dict[str, Path], folder: Path, requests: int) -> None:
    """Seconds to the first open port; resident memory as requests go by."""
    command, port, _ = embedded(models, folder)
    body_path = folder / "memory.json"
    body_path.write_bytes(bodies()["floats"])
    started = time.monotonic()
    with running(command, port) as process:
        print(f"first port open after {time.monotonic() - started:.2f} s")
        for number in range(5):
            print(f"resident memory after {number * requests // 4:7} requests: {_resident_mb(process.pid):.0f} MB")
            if number < 4:
                subprocess.run(
                    [
                        *["hey", "-n", str(requests // 4), "-c", "64", "-m", "POST", "-D", str(body_path)],
                        f"http://127.0.0.1:{port}/v1/models/mlp:predict",
                    ],
                    capture_output=True,
                    check=True,
                )


def _resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="length of one load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["rest", "grpc", "memory", "alternatives"])
    parser.add_argument("--requests", type=int, default=200_000, help="requests of the memory measurement")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models, packages = digit_models(folder), folder / "packages"
        if options.only in (None, "rest"):
            install(packages, "uvicorn")
            measure(rest_contenders(models, folder, packages), [16, 64], options.seconds, options.rounds)
        if options.only in (None, "alternatives"):
            install(packages, "uvicorn", "fastapi", "litserve")
            measure(alternatives(models, packages), [16, 64], options.seconds, options.rounds)
        if options.only in (None, "grpc"):
            measure_grpc(models, folder, options.seconds, options.rounds)
        if options.only in (None, "memory"):
            measure_start_and_memory(models, folder, options.requests)


_SERVERS = {"prototype": serve_prototype, "fastapi": serve_fastapi, "litserve": serve_litserve}

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in _SERVERS:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        _SERVERS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
    elif len(sys.argv) > 1 and sys.argv[1] == "make-models":
        make_models(Path(sys.argv[2]))
    else:
        main()
