"""What the manifests rely on, against real servers: the probes' answers, and how requests are spread."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time

import grpc
import pytest
import requests
import yaml

from launchpad.client import PREDICT, RestClient, predict_request
from launchpad.examples import Examples
from tests import fleets
from tests.conftest import ROOT
from tests.integration.conftest import free_ports
from tests.integration.kubernetes.conftest import program

MODEL = "digits-mlp"
VERSIONS = ROOT / "models" / MODEL / "versions"
METRICS = "/monitoring/prometheus/metrics"
COUNT = re.compile(rf'^:tensorflow:serving:request_count{{model_name="{MODEL}",status="OK"}} (\d+)', re.MULTILINE)


@pytest.fixture(scope="module")
def container():
    """The model server's container as the base manifest has it."""
    (pod,) = (yaml.safe_load((ROOT / "k8s/base/deployment.yaml").read_text())["spec"]["template"]["spec"],)
    return pod["containers"][0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two servers of one model, as pairs of ports (REST, gRPC)."""
    rest, grpc_port, other_rest, other_grpc = free_ports(4)
    ports = [(rest, grpc_port), (other_rest, other_grpc)]
    monitoring = tmp_path_factory.mktemp("config") / "monitoring.config"
    monitoring.write_text(f'prometheus_config {{ enable: true path: "{METRICS}" }}')
    with fleets.servers(VERSIONS, ports, MODEL, threads=8, flags=(f"--monitoring_config_file={monitoring}",)):
        yield ports


@pytest.fixture(scope="module")
def inputs():
    examples = Examples.load(ROOT / f"models/{MODEL}/evidence/1/examples.npz")
    return {name: values[:1] for name, values in examples.inputs["serving_default"].items()}


def answered(ports) -> list[int]:
    """Return how many requests each server has answered."""
    found = [COUNT.search(RestClient(f"http://127.0.0.1:{rest}").metrics(METRICS)) for rest, _ in ports]
    return [int(one[1]) if one else 0 for one in found]


def ready(container, rest: int, grpc_port: int, models: list[str]) -> tuple[bool, str]:
    """Run the readiness probe's command as the kubelet does, on a server of this machine."""
    bash, script, _, _, *declared = container["readinessProbe"]["exec"]["command"]
    assert script == "/opt/launchpad/healthcheck.sh" and MODEL in declared
    command = [bash, ROOT / "serving/healthcheck.sh", str(rest), str(grpc_port), *models]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=container["readinessProbe"]["timeoutSeconds"]
    )
    return done.returncode == 0, done.stdout.strip()


def connects(port: int, timeout_s: float) -> bool:
    """Do what a tcpSocket probe does."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout_s):
        return True
    return False


def test_a_server_that_has_not_opened_its_ports_is_neither_started_nor_ready(container):
    rest, grpc_port = free_ports(2)
    assert not connects(rest, container["startupProbe"].get("timeoutSeconds", 1))
    assert ready(container, rest, grpc_port, [MODEL])[0] is False


def test_a_server_is_ready_when_every_model_is_available(container, pair):
    (rest, grpc_port), _ = pair
    assert connects(rest, 1)
    assert ready(container, rest, grpc_port, [MODEL]) == (True, "ready")


def test_a_server_that_lacks_a_model_is_not_ready_though_its_ports_are_open(container, pair):
    (rest, grpc_port), _ = pair
    assert connects(rest, 1)
    is_ready, said = ready(container, rest, grpc_port, [MODEL, "digits-cnn"])
    assert not is_ready and "digits-cnn" in said


def test_a_server_whose_every_thread_is_taken_is_alive(container, inputs, tmp_path):
    """One thread, and a batch that waits 4 s to fill: the request holds the thread for all of that."""
    rest, grpc_port = free_ports(2)
    batching = tmp_path / "batching.pbtxt"
    batching.write_text("max_batch_size { value: 64 }\nbatch_timeout_micros { value: 4000000 }\n")
    flags = ("--enable_batching=true", f"--batching_parameters_file={batching}", "--enable_model_warmup=false")
    with fleets.servers(VERSIONS, [(rest, grpc_port)], MODEL, threads=1, flags=flags):
        body = {"instances": [next(iter(inputs.values()))[0].tolist()]}
        url = f"http://127.0.0.1:{rest}/v1/models/{MODEL}:predict"
        held = threading.Thread(target=requests.post, args=(url,), kwargs={"json": body, "timeout": 30})
        held.start()
        time.sleep(0.5)
        assert held.is_alive()
        assert connects(rest, container["livenessProbe"]["timeoutSeconds"])
        held.join()


def channel_options() -> list[tuple[str, str]]:
    """Return the client's options that the rendered Service names."""
    text = (ROOT / "k8s/base/service.yaml").read_text()
    (config,) = re.findall(r"grpc\.service_config\", '(.*)'\)\]", text)
    return [("grpc.service_config", config)]


def test_one_grpc_connection_gives_all_calls_to_one_server_and_round_robin_spreads_them(pair, inputs):
    address = "ipv4:" + ",".join(f"127.0.0.1:{grpc_port}" for _, grpc_port in pair)
    request = predict_request(MODEL, "serving_default", inputs).SerializeToString()
    given = []
    for options in ([], channel_options()):
        before = answered(pair)
        with grpc.insecure_channel(address, options) as channel:
            grpc.channel_ready_future(channel).result(timeout=10)
            time.sleep(0.5)  # for the second connection, where there is one
            predict = channel.unary_unary(PREDICT)
            for _ in range(40):
                predict(request, timeout=10)
        given.append([after - earlier for after, earlier in zip(answered(pair), before, strict=True)])
    pinned, spread = given
    assert sorted(pinned) == [0, 40]
    assert min(spread) >= 15


@pytest.mark.parametrize("balancer", fleets.BALANCERS)
def test_nginx_spreads_requests_over_two_servers_as_the_plan_takes_it_to(pair, inputs, balancer, tmp_path):
    program("nginx", "nginx-light")
    (port,) = free_ports(1)
    before = answered(pair)
    with fleets.nginx(tmp_path / "nginx", port, balancer, [rest for rest, _ in pair]):
        client = RestClient(f"http://127.0.0.1:{port}")
        for _ in range(60):
            client.predict(MODEL, "serving_default", inputs)
    given = [after - earlier for after, earlier in zip(answered(pair), before, strict=True)]
    assert sum(given) == 60
    least = {"random": 12, "round robin": 30, "least loaded": 0}[balancer]  # chance: below 12 once in a million
    assert min(given) >= least
