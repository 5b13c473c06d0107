"""A server that leaves its ports to another one: every connection and every request finds one of the two."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

from launchpad.modelserver import protos
from tests.waiting import wait_for

from .conftest import Server, Start, call, predict_request

REQUEST = json.dumps({"instances": [1.0]})


def keep_asking(server: Server, over: threading.Event, answers: Counter[str]) -> None:
    """Ask over one connection for as long as it lasts, as a client that keeps connections alive does."""
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=30)
    while not over.is_set():
        try:
            connection.request("POST", "/v1/models/scale:predict", REQUEST)
            answers[str(connection.getresponse().read())] += 1
        except OSError as error:
            answers[f"kept: {error!r}"] += 1
            connection.close()


def ask_anew(server: Server, over: threading.Event, answers: Counter[str]) -> None:
    """Open a connection for each request."""
    while not over.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=30)
        try:
            connection.request("POST", "/v1/models/scale:predict", REQUEST)
            answers[str(connection.getresponse().read())] += 1
        except OSError as error:
            answers[f"new: {error!r}"] += 1
        connection.close()


def ask_by_grpc(server: Server, over: threading.Event, answers: Counter[str]) -> None:
    with server.channel() as channel:
        while not over.is_set():
            response = call(
                channel, "PredictionService/Predict", predict_request("scale", [1.0]), protos.PredictResponse
            )
            answers[str(list(response.outputs["y"].float_val))] += 1


def listens(server: Server) -> bool:
    connections = psutil.Process(server.process.pid).net_connections("tcp")
    return sum(connection.status == psutil.CONN_LISTEN for connection in connections) == 2


def test_no_request_is_lost_while_one_server_takes_over_from_another(start_server: Start, models: Path) -> None:
    flags = ["--model_name=scale", f"--model_base_path={models / 'scale'}", "--share_ports"]
    server = start_server(*flags)
    answers: Counter[str] = Counter()
    over = threading.Event()
    asking = [
        threading.Thread(target=ask, args=(server, over, answers))
        for ask in (keep_asking, keep_asking, ask_anew, ask_anew, ask_anew, ask_by_grpc)
    ]
    for thread in asking:
        thread.start()
    for _ in range(3):
        ports = [f"--rest_api_port={server.rest_port}", f"--port={server.grpc_port}"]
        successor = start_server(*flags, *ports, wait=False)
        wait_for(lambda: listens(successor))  # noqa: B023 (asked at once)
        before = sum(answers.values())
        server.process.send_signal(signal.SIGUSR2)
        assert server.process.wait(20) == 0
        time.sleep(0.2)
        assert sum(answers.values()) > before
        server.process = successor.process
    over.set()
    for thread in asking:
        thread.join()
    assert len(answers) == 2 and all("error" not in answer.lower() for answer in answers), answers


def test_ports_are_shared_only_by_servers_that_say_so(start_server: Start, models: Path) -> None:
    flags = ["--model_name=scale", f"--model_base_path={models / 'scale'}"]
    server = start_server(*flags, "--share_ports")
    other = start_server(*flags, f"--rest_api_port={server.rest_port}", wait=False)
    assert other.process.wait(20) == 3
    assert "Address already in use" in other.log()


def test_a_client_that_never_asks_again_does_not_hold_the_server(start_server: Start, models: Path) -> None:
    server = start_server("--model_name=scale", f"--model_base_path={models / 'scale'}", "--share_ports")
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=30)
    connection.request("GET", "/v1/models/scale")
    assert connection.getresponse().read()
    server.process.send_signal(signal.SIGUSR2)
    assert server.process.wait(20) == 0
    connection.close()
