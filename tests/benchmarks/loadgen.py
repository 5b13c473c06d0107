"""How many requests a second one process of the load generator makes, beside what people use instead.

    python -m tests.benchmarks.loadgen                     # about two minutes; needs nginx and hey
    python -m tests.benchmarks.loadgen --only rest         # or grpc
    python -m tests.benchmarks.loadgen --seconds 8 --rounds 3

Servers that answer at once stand on one core, the generator on another: nginx with one worker for REST, a hundred lines
over uvloop for gRPC. The body has 6.2 KB, 16 connections are kept alive. nginx reads the body before it answers where
Debian's libnginx-mod-http-echo is there; without, it answers before and reads it then. Locust runs with its web page,
which is asked once a second as a browser does, and the rate is what Locust's own statistics say. Contenders take turns,
round after round, and every figure is the median of the rounds: compare ratios within a run. `check` tells who compares
each answer with the right one.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import loadgen_setting as setting
from tests.benchmarks.loadgen_setting import CONNECTIONS, PATH, REST_ANSWER, REST_BODY

ECHO = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")
OWN_FILE = "loadtests/"
THEIR_FILE = str(Path(__file__).with_name("loadgen_locustfile.py"))


@dataclass(frozen=True)
class Contender:
    """A generator: its name, whether it checks answers, and how its requests a second are measured."""

    name: str
    protocol: str
    check: str
    measure: Callable[[float], float]


@contextmanager
def nginx(folder: Path) -> Iterator[int]:
    """nginx with one worker that returns the right answer; yields its port."""
    port = setting.free_port()
    load = f"load_module {ECHO};" if ECHO.exists() else ""
    answer = (
        f"echo_read_request_body; echo -n '{REST_ANSWER.decode()}';"
        if load
        else f"return 200 '{REST_ANSWER.decode()}';"
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"{load} worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log /dev/null; events {{}} "
        f"http {{ access_log off; keepalive_requests 100000000; default_type application/json; "
        f"client_body_buffer_size 64k; client_header_buffer_size 16k; "
        f"server {{ listen 127.0.0.1:{port}; location / {{ {answer} }} }} }}"
    )
    with setting.running([*setting.pinned(1), "nginx", "-c", str(config)], port):
        yield port


def locust(checkout: Path, file: str, user: str, host: str, packages: Path) -> Callable[[float], float]:
    """Measure a Locust user, as its web page counts it once all users run."""

    def measure(seconds: float) -> float:
        port = setting.free_port()
        command = [*setting.pinned(0), sys.executable, "-m", "locust", "-f", file, user, "--host", host]
        command += ["-u", str(CONNECTIONS), "-r", "100", "--autostart", "--web-host", "127.0.0.1"]
        command += ["--web-port", str(port), "--loglevel", "ERROR"]
        environment = setting.environment(PYTHONPATH=f"{setting.ROOT}:{packages}")
        with setting.running(command, port, cwd=checkout, env=environment):
            _changed(port, 0)
            time.sleep(1.5)
            begin, before = _changed(port, _count(port))
            while time.monotonic() < begin + seconds - 0.5:
                time.sleep(1)
                _count(port)
            end, after = _changed(port, _count(port))
            return (after - before) / (end - begin)

    return measure


def _count(port: int) -> int:
    """Return how many requests the page knows of; they must all have succeeded."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats/requests", timeout=10) as answer:
        page = json.load(answer)
    if page["errors"]:
        raise SystemExit(f"requests fail: {page['errors'][0]}")
    return page["stats"][-1]["num_requests"]


def _changed(port: int, known: int) -> tuple[float, int]:
    """Wait for the page's count to change: ours does so once a second. Return (when, the count)."""
    limit = time.monotonic() + 30
    while (count := _count(port)) == known:
        if time.monotonic() > limit:
            raise SystemExit("no requests are made")
        time.sleep(0.02)
    return time.monotonic(), count


def hey(url: str, folder: Path) -> Callable[[float], float]:
    body = folder / "body.json"
    body.write_bytes(REST_BODY)

    def measure(seconds: float) -> float:
        command = ["hey", "-z", f"{seconds}s", "-c", str(CONNECTIONS), "-m", "POST", "-T", "application/json"]
        output = subprocess.run(
            [*setting.pinned(0), *command, "-D", str(body), url], capture_output=True, text=True, check=True
        ).stdout
        rate = re.search(r"Requests/sec:\s+(\S+)", output)
        if set(re.findall(r"\[(\d{3})\]\t\d+ responses", output)) != {"200"} or not rate:
            raise SystemExit(f"hey: {output}")
        return float(rate[1])

    return measure


def contenders(stack: ExitStack, folder: Path, only: str | None) -> list[Contender]:
    """Start the servers and return who is measured on them."""
    packages, rest_port, grpc_port = folder / "packages", setting.free_port(), setting.free_port()
    setting.install(packages, "grpc-interceptor==0.15.4")
    found = []
    if only in (None, "rest"):
        rest_port = stack.enter_context(nginx(folder))
    if only in (None, "grpc"):
        grpc_port = stack.enter_context(setting.fixed_server("grpc"))
    setting.checkout(folder, rest_port, grpc_port)
    url = f"http://127.0.0.1:{rest_port}"

    def of(name: str, protocol: str, check: str, file: str, user: str, host: str) -> None:
        found.append(Contender(name, protocol, check, locust(folder, file, user, host, packages)))

    if only in (None, "rest"):
        of("launchpad RestRows", "REST", "every answer", OWN_FILE, "RestRows", url)
        of("Locust FastHttpUser, json=", "REST", "status", THEIR_FILE, "FastJson", url)
        of("Locust FastHttpUser, bytes", "REST", "status", THEIR_FILE, "FastBytes", url)
        if shutil.which("hey"):
            found.append(Contender("hey", "REST", "status", hey(url + PATH, folder)))
    if only in (None, "grpc"):
        of("launchpad GrpcTensors", "gRPC", "every answer", OWN_FILE, "GrpcTensors", url)
        of("Locust's gRPC user", "gRPC", "status", THEIR_FILE, "LocustGrpc", f"127.0.0.1:{grpc_port}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("rest", "grpc"))
    options = parser.parse_args()
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        tried = contenders(stack, Path(name), options.only)
        for _ in range(options.rounds):
            for contender in tried:
                rates.setdefault(contender.name, []).append(contender.measure(options.seconds))
    rows: list[dict[str, Any]] = []
    print(f"{'':30}{'check':>14}{'requests/s':>12}{'ours / it':>11}   rounds")
    for contender in tried:
        own = next(other for other in tried if other.protocol == contender.protocol)
        rate, ours = statistics.median(rates[contender.name]), statistics.median(rates[own.name])
        rounds = [round(value) for value in rates[contender.name]]
        print(f"{contender.name:30}{contender.check:>14}{rate:12.0f}{ours / rate:11.2f}   {rounds}")
        rows.append(
            {
                "name": contender.name,
                "protocol": contender.protocol,
                "check": contender.check,
                "requests_per_s": round(rate),
                "ours_over_it": round(ours / rate, 2),
                "rounds": rounds,
            }
        )
    reads = "nginx reads the body first (echo module)" if ECHO.exists() else "nginx answers before it reads the body"
    print(f"\n{CONNECTIONS} connections, body {len(REST_BODY)} bytes, one process; {reads}")
    how = {"connections": CONNECTIONS, "body_bytes": len(REST_BODY), "seconds": options.seconds, "server": reads}
    if options.only is None:
        setting.keep("loadgen", how, rows)


if __name__ == "__main__":
    main()
