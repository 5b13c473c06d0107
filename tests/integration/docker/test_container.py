"""The docker backend on the project's own Dockerfile: how the container serves, what it may do, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import psutil
import pytest
import requests
import yaml
from conftest import dockerise
from stand_in import REPOSITORY, make_python

from launchpad import declaration, machine, pipeline
from launchpad.backends import how_ended
from launchpad.backends.container import HEALTHCHECK
from launchpad.errors import EnvironmentFault, GateFailed
from launchpad.imagefile import Image
from launchpad.kubernetes.render import load_files
from launchpad.launch.stage import stop
from launchpad.loadtest.stage import Target, measure, profile_of
from launchpad.publishing import Publisher
from launchpad.server import Server
from launchpad.spec import BatchQueue
from tests.integration.conftest import Checkout
from tests.waiting import wait_for

SLEEPER = "#!/bin/bash\nexec sleep 600\n"
"""A server that opens no port and, as the real one, leaves SIGTERM to the kernel."""


@pytest.fixture(scope="module")
def built_once(tmp_path_factory, stand_in):
    made = dockerise(Checkout(tmp_path_factory.mktemp("built") / "checkout"), stand_in)
    made.invoke("build", check=True)
    yield made
    stop(made.layout)


@pytest.fixture
def built(built_once):
    """A checkout with its image built and no server; what a test declares or launches goes with it."""
    declared = (built_once.root / "pipeline.yaml").read_text()
    yield built_once
    (built_once.root / "pipeline.yaml").write_text(declared)
    stop(built_once.layout)


@pytest.fixture
def container(built, engine):
    """The container of a launched server, to do with as one likes."""
    built.invoke("launch", check=True)
    return engine.client.containers.get(Server.ready(built.layout).container)


@pytest.fixture(scope="module")
def serving(tmp_path_factory, stand_in):
    """A checkout whose server runs in a container that is left as it is."""
    made = dockerise(Checkout(tmp_path_factory.mktemp("serving") / "checkout"), stand_in)
    made.edit(("name: digits\n", "name: serving\n"))  # the other containers have the name that is declared
    made.invoke("build", check=True)
    made.invoke("launch", check=True)
    yield made
    stop(made.layout)


@pytest.fixture
def server_container(serving, engine):
    """The container that is left as it is."""
    return engine.client.containers.get(Server.ready(serving.layout).container)


def health(container) -> tuple[int, str]:
    """Run the image's health check, as the engine does."""
    done = container.exec_run(container.attrs["Config"]["Healthcheck"]["Test"][1:])
    return done.exit_code, done.output.decode().strip()


@pytest.fixture
def sleeper(built, engine, tmp_path):
    """A container of the image whose server sleeps."""
    script = tmp_path / "tensorflow_model_server"
    script.write_text(SLEEPER)
    script.chmod(0o755)
    mount = {str(script): {"bind": "/usr/bin/tensorflow_model_server", "mode": "ro"}}
    container = engine.client.containers.run(Image.load(built.layout).id, detach=True, volumes=mount)
    yield container
    container.remove(force=True)


@pytest.mark.alone  # a monitor that starts late beside other work sees the server idle
def test_auto_takes_the_engine_and_the_chain_runs_through_a_container(dockerised):
    dockerised.edit(
        ("backend: docker", "backend: auto"), ("store: sqlite", "monitor: {interval_s: 0.5}\n\nstore: sqlite")
    )

    done = dockerised.invoke("deploy-local", "--profile", "smoke", "--duration", "2", check=True)

    assert "(docker: a Docker engine answers)" in done.stdout
    (run,) = dockerised.runs()
    assert (dockerised.root / "reports" / run.name / "report.html").exists()
    sql = (
        "select max(cpu) as cpu, max(memory_mib) as memory_mib, sum(answered) as answered from samples where model = ''"
    )

    def seen() -> dict:
        return json.loads(dockerised.invoke("query", sql, "--json", check=True).stdout)[0]

    wait_for(lambda: seen()["cpu"] is not None)  # a share of a processor takes two samples
    figures = seen()
    assert 0.01 < figures["cpu"] < 64 and 50 < figures["memory_mib"] < 8192 and figures["answered"] > 0


def test_the_engine_finds_the_container_healthy_and_it_may_do_nothing_but_serve(server_container):
    container = server_container
    deadline = time.monotonic() + 30
    while container.attrs["State"]["Health"]["Status"] != "healthy" and time.monotonic() < deadline:
        time.sleep(0.5)
        container.reload()
    assert container.attrs["State"]["Health"]["Status"] == "healthy"
    assert health(container) == (0, "ready")
    assert container.exec_run(["/bin/bash", "-c", "echo $UID"]).output == b"65532\n"
    assert container.exec_run(["/bin/bash", "-c", ": > /config/x || : > /models/x || : > /x"]).exit_code != 0
    capabilities = container.exec_run(["/bin/bash", "-c", "grep ^Cap /proc/1/status"]).output.decode().split()
    assert set(capabilities[1::2]) == {"0" * 16}
    sysctls = container.exec_run(["cat", "/proc/sys/net/core/somaxconn", "/proc/sys/net/ipv4/tcp_max_syn_backlog"])
    assert sysctls.output.split() == [b"4096", b"4096"]
    ports = container.attrs["NetworkSettings"]["Ports"]
    assert {place["HostIp"] for places in ports.values() if places for place in places} == {"127.0.0.1"}
    policy = container.attrs["HostConfig"]["RestartPolicy"]
    assert policy == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert container.attrs["HostConfig"]["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}


def test_a_container_that_the_engine_started_again_is_another_start(container, built):
    (server,) = psutil.Process(container.attrs["State"]["Pid"]).children()
    server.kill()
    deadline = time.monotonic() + 20
    while container.attrs["RestartCount"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.2)
        container.reload()

    status = built.invoke("status", check=True).stdout
    assert "the engine started it again" in status and "runs and is not as launched" in status
    assert how_ended(Server.ready(built.layout))
    assert "ended 1 server" in built.invoke("stop", check=True).stdout


def test_docker_stop_ends_the_server_within_a_second(container):
    begin = time.monotonic()
    container.stop(timeout=10)
    assert time.monotonic() - begin < 1
    container.reload()
    assert container.attrs["State"]["ExitCode"] == 0


def test_docker_stop_ends_a_server_that_handles_no_signal_too(sleeper):
    begin = time.monotonic()
    sleeper.stop(timeout=10)
    assert time.monotonic() - begin < 1
    sleeper.reload()
    assert sleeper.attrs["State"]["ExitCode"] == 128 + signal.SIGTERM


def test_the_health_check_tells_loading_from_dead(sleeper, server_container, built, serving):
    assert health(sleeper) == (1, f"loading: port {built.rest_port} is not open yet")
    (server,) = psutil.Process(server_container.attrs["State"]["Pid"]).children()
    assert health(server_container) == (0, "ready")

    server.send_signal(signal.SIGSTOP)
    try:
        code, said = health(server_container)
    finally:
        server.send_signal(signal.SIGCONT)
    assert (code, said) == (1, f"dead: no answer on port {serving.rest_port} within 3 s")

    absent = [*HEALTHCHECK, str(serving.rest_port), "0", "absent"]
    assert b"dead: absent has no version AVAILABLE: HTTP/1.1 404" in server_container.exec_run(absent).output


def test_the_health_check_of_a_server_without_rest_asks_for_the_grpc_port(server_container, serving):
    assert server_container.exec_run([*HEALTHCHECK, "0", str(serving.grpc_port), "digits-mlp"]).exit_code == 0


def test_versions_are_swapped_on_the_mount_while_requests_go_on(dockerised):
    dockerised.edit(("backend: docker", "backend: docker\n  models: mounted"))
    dockerised.invoke("build", check=True)
    assert Image.load(dockerised.layout).holds["models"] == "mounted"
    dockerised.invoke("launch", check=True)
    publisher = Publisher(declaration.load(dockerised.root))
    url = f"http://127.0.0.1:{dockerised.rest_port}/v1/models/digits-cnn"
    body = {"signature_name": "serving_default", "instances": [[0.0] * 784]}
    answers: list[int] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.append(requests.post(f"{url}:predict", json=body, timeout=5).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        published = publisher.publish("digits-cnn", batching=BatchQueue(max_batch_size=4), replace=True)
        publisher.label("digits-cnn", {"stable": published.version})
        again = publisher.publish("digits-cnn", batching="off", replace=True)
    finally:
        over.set()
        asking.join()

    assert set(answers) == {200}
    assert available(url) == {str(again.version)}
    assert requests.post(f"{url}/labels/stable:predict", json=body, timeout=5).status_code == 200
    assert "AVAILABLE" in dockerised.invoke("status", check=True).stdout


def test_nothing_is_published_to_models_that_are_baked_into_the_image(serving):
    with pytest.raises(EnvironmentFault, match="baked into the server's image"):
        Publisher(declaration.load(serving.root))


def available(url: str) -> set[str]:
    states = requests.get(url, timeout=5).json()["model_version_status"]
    return {state["version"] for state in states if state["state"] == "AVAILABLE"}


def test_a_server_that_exceeds_its_memory_is_reported_as_such(built):
    built.edit(("  container:\n", "  container:\n    memory: 96m\n"))

    done = built.invoke("launch")

    assert done.returncode == 3
    assert "exceeding its memory limit of 96 MiB (serving.container.memory), exit code 137" in done.stdout
    assert not Server.load(built.layout)


def test_a_launch_without_the_image_of_what_is_here_asks_for_a_build(dockerised):
    dockerised.invoke("build", check=True)
    dockerised.edit(("grpc_max_threads: 64", "grpc_max_threads: 65"))
    dockerised.invoke("configure", check=True)

    done = dockerised.invoke("launch")

    assert done.returncode == 3 and "run `invoke build`" in done.stdout


def test_a_taken_name_is_told_with_its_owner(built, engine):
    other = engine.client.containers.create(Image.load(built.layout).id, name="tfs-launchpad-digits")
    try:
        done = built.invoke("launch")
    finally:
        other.remove(force=True)
    assert done.returncode == 3
    assert "the container name tfs-launchpad-digits is taken by something else" in done.stdout


def test_a_taken_port_is_told_with_its_holder(built):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", built.grpc_port))
        taken.listen()
        done = built.invoke("launch")
    assert done.returncode == 3 and f"port {built.grpc_port} is taken by process {os.getpid()}" in done.stdout


def test_a_required_gpu_that_is_absent_is_told_with_what_was_found(built):
    built.edit(("backend: docker", "backend: docker\n  gpu: require"))
    done = built.invoke("launch")
    assert done.returncode == 3
    assert "serving.gpu is require, and the engine offers no NVIDIA GPU (runtimes: runc; devices: none)" in done.stdout


def test_a_kernel_setting_that_a_container_cannot_have_is_told(built):
    built.edit(("net.core.somaxconn: 4096", "net.core.no_such: 1"))
    done = built.invoke("launch")
    assert done.returncode == 3 and "net" in done.stdout and "serving.container.sysctls" in done.stdout


def test_the_stock_entry_point_works_as_in_the_real_image(engine, stand_in, repository):
    """MODEL_NAME and MODEL_BASE_PATH from the environment, arguments appended: the contract that the stand-in keeps."""
    versions = {str(repository / "models/digits-mlp/versions"): {"bind": "/models/digits-mlp", "mode": "ro"}}
    container = engine.client.containers.run(
        stand_in,
        ["--file_system_poll_wait_seconds=0"],
        detach=True,
        environment={"MODEL_NAME": "digits-mlp"},
        volumes=versions,
    )
    try:
        deadline = time.monotonic() + 30
        while b"gRPC API at" not in container.logs():
            assert time.monotonic() < deadline, container.logs()
            time.sleep(0.2)
        assert container.exec_run([*HEALTHCHECK[:1], "-c", "type -P curl"]).exit_code != 0
        words = container.exec_run(["cat", "/proc/1/cmdline"]).output.split(b"\0")
        assert words[1:3] == [b"/usr/bin/tf_serving_entrypoint.sh", b"--file_system_poll_wait_seconds=0"]
    finally:
        container.remove(force=True)


@pytest.fixture
def load_image(serving, engine, tmp_path_factory):
    """The load generator's image, of its own Dockerfile."""
    for name in ("k8s", "requirements.txt"):
        subprocess.run(["cp", "--recursive", REPOSITORY / name, serving.root], check=True)
    serving.invoke("manifests", "--force", check=True)
    folder = serving.root / "k8s/overlays/loadtest"
    (base,) = re.findall("^FROM (.*)", (folder / "Dockerfile").read_text(), re.MULTILINE)
    make_python(engine.client, base, tmp_path_factory.mktemp("python"))
    before = (serving.root / ".dockerignore").read_text()
    shutil.copy2(folder / "Dockerfile.dockerignore", serving.root / ".dockerignore")  # where an old builder looks
    command = ["docker", "build", "--quiet", "--file", str(folder / "Dockerfile"), "--tag", "load:1", "."]
    done = subprocess.run(
        command, cwd=serving.root, env={**os.environ, "DOCKER_BUILDKIT": "0"}, capture_output=True, text=True
    )
    (serving.root / ".dockerignore").write_text(before)
    assert done.returncode == 0, done.stderr
    return "load:1"


@pytest.fixture
def network(engine, server_container):
    """A network on which the server has the name of its Service."""
    made = engine.client.networks.create("load")
    made.connect(server_container, aliases=["serving-grpc"])
    yield made
    made.disconnect(server_container)
    made.remove()


def test_the_load_generators_image_is_built_and_drives_the_server_as_its_jobs_say(
    serving, server_container, load_image, network, engine, tmp_path
):
    """The Jobs' own commands, users, rights and mounts; a network of the engine in place of the cluster's."""
    given = pipeline.context(serving.root, profile="arrivals", duration_s=2, processes=2)
    _, profile = profile_of(given)
    tmp_path.chmod(0o755)
    for name, text in load_files(profile, 2).items():
        (tmp_path / name).write_text(text)
    started = []
    try:
        for role, count in (("master", 1), ("workers", 2)):
            started += [start_job(engine, serving, load_image, role, tmp_path) for _ in range(count)]
        logs = ["docker", "logs", "--follow", started[0].id]
        target = Target(Server.ready(serving.layout), machine.describe(), lambda: "", logs)
        with contextlib.suppress(GateFailed):  # of a machine too busy to send in time, which the run says of itself
            measure(given, target)
    finally:
        said = [container.logs(stdout=False).decode()[-3000:] for container in started]
        for container in started:
            container.remove(force=True)

    (run,) = serving.runs()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["errors"]) == ("completed", []), said
    assert summary["totals"]["requests"] > 500
    assert len(summary["lines"]) == 4 and all(line["requests"] for line in summary["lines"].values())


def start_job(engine, checkout, image: str, role: str, load):
    """Start a pod of a Job: what the manifest says of its container, as the engine takes it."""
    folder = checkout.root / "k8s/overlays/loadtest"
    pod = yaml.safe_load((folder / f"{role}.yaml").read_text())["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    places = {"locustfiles": folder, "load": load}
    mounts = {
        str(places[mount["name"]]): {"bind": mount["mountPath"], "mode": "ro"}
        for mount in container["volumeMounts"]
        if mount["name"] in places
    }
    assert container["securityContext"]["readOnlyRootFilesystem"] and pod["securityContext"]["runAsUser"] == 65532
    client = engine.client
    network = client.api.create_networking_config(
        {"load": client.api.create_endpoint_config(aliases=["serving-load"] if role == "master" else [])}
    )
    made = client.api.create_container(
        image,
        [*container["command"], *container["args"]],
        environment={one["name"]: one["value"] for one in container["env"]},
        working_dir=container["workingDir"],
        networking_config=network,
        host_config=client.api.create_host_config(
            binds=mounts, read_only=True, tmpfs={"/tmp": ""}, cap_drop=["ALL"], security_opt=["no-new-privileges:true"]
        ),
    )
    client.api.start(made["Id"])
    return client.containers.get(made["Id"])


def test_an_engine_that_stops_in_mid_run_fails_the_run(built, engine):
    if not engine.is_own:
        pytest.skip("not run: the engine is not the tests' own to stop")
    built.invoke("launch", check=True)
    started = built.start("loadtest", "--profile", "smoke", "--duration", "60")
    while not any((run / "history.csv").exists() for run in built.runs()):
        assert started.poll() is None
        time.sleep(0.1)
    engine.stop()
    try:
        output, _ = started.communicate(timeout=60)
        status = built.invoke("status")
        stopped = built.invoke("stop")
    finally:
        engine.start()
    assert started.returncode == 1 and "the server ended in the middle of the run" in output
    assert status.returncode == 0 and "no Docker engine answers" in status.stdout
    assert stopped.returncode == 3 and "start the engine" in stopped.stdout
    assert "Traceback" not in output + status.stdout + stopped.stdout
