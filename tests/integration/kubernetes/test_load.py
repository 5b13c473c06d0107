"""`invoke loadtest --kubernetes` with a stand-in for the cluster that runs the Jobs' own commands here: a real Locust
master, real workers, a real server. Scheduling, images, networks and mounts are not run.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from launchpad import declaration
from launchpad.errors import DeclarationError, EnvironmentFault, GateFailed
from launchpad.kubernetes.load import load
from launchpad.pipeline import context
from launchpad.stage import Context
from tests.conftest import ROOT
from tests.integration.conftest import Checkout, free_ports

STAND_IN = """#!{python}
import json, os, pathlib, subprocess, sys

here = pathlib.Path(__file__).parent
words = [word for word in sys.argv[1:] if not word.startswith(("--context=", "--namespace="))]
with (here / "calls").open("a") as calls:
    calls.write(" ".join(words) + "\\n")
if words[0] == "config":
    print("here")
elif words[0] == "kustomize":
    sys.exit(subprocess.run([{kubectl!r}, *words]).returncode)
elif words[0] == "get":
    print((here / "deployment.json").read_text())
elif words[0] == "apply":
    (here / "applied.json").write_text(sys.stdin.read())
elif words[0] == "logs":
    objects = json.loads((here / "applied.json").read_text())["items"]
    (load,) = [one["data"] for one in objects if one["kind"] == "ConfigMap" and "load.json" in one["data"]]
    for name, text in load.items():
        (here / name).write_text(text)

    def run(role):
        (job,) = [one for one in objects if one["kind"] == "Job" and one["metadata"]["name"].endswith(role)]
        (container,) = job["spec"]["template"]["spec"]["containers"]
        script = container["args"][0].replace("/load/", f"{{here}}/").replace("python -m", "{python} -m")
        script = script.replace("--master-host=digits-load", "--master-host=127.0.0.1 --master-port={port}")
        script = script.replace("--master ", "--master --master-bind-port={port} ")
        script = script.replace("//digits-grpc:", "//127.0.0.1:")
        how = {{"cwd": {root!r}, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}}
        several = range(job["spec"].get("parallelism", 1))
        return [subprocess.Popen([*container["command"], script], **how) for _ in several]

    started = run("workers")
    (master,) = run("master")
    code = master.wait()
    for worker in started:
        worker.terminate()
    sys.exit(code)
"""
IMAGE = "registry.example/load@sha256:" + "e" * 64


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    from launchpad.launch.stage import stop

    made = Checkout(tmp_path_factory.mktemp("load") / "checkout")
    shutil.copytree(ROOT / "k8s", made.root / "k8s")
    generators = f"  namespace: serving\n  generators: {{workers: 2, image: {IMAGE}}}\n"
    made.edit(("  namespace: serving\n", generators))
    made.invoke("manifests", check=True)
    made.invoke("launch", check=True)
    yield made
    stop(made.layout)


@pytest.fixture
def cluster(launched, tools, tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    (port,) = free_ports(1)
    program = folder / "kubectl"
    python, root = sys.executable, str(launched.root)
    program.write_text(STAND_IN.format(python=python, kubectl=str(tools.kubectl), port=port, root=root))
    program.chmod(0o755)
    objects = tools.build(launched.root / "k8s/overlays/cpu")
    (deployment,) = (one for one in objects if one["kind"] == "Deployment")
    (folder / "deployment.json").write_text(json.dumps(deployment | {"status": {"readyReplicas": 3}}))
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def test_two_workers_drive_the_servers_and_the_run_is_kept_here(launched, cluster):
    with contextlib.suppress(GateFailed):  # of a machine too busy to send in time, which the run says of itself
        load(context(launched.root, profile="arrivals", duration_s=3), "here")

    (run,) = launched.runs()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "completed" and summary["totals"]["failures"] == 0
    assert summary["totals"]["requests"] == pytest.approx(1500, rel=0.15)  # 500 a second, Poisson
    assert summary["server"]["backend"] == "kubernetes"
    assert summary["machine"]["cores"] == 6 and "3 pods in here" in summary["machine"]["processor"]
    assert (run / "latency.hlog").stat().st_size > 1000
    calls = [line.split()[0] for line in (cluster / "calls").read_text().splitlines()]
    assert calls == ["config", "get", "kustomize", "delete", "apply", "logs", "delete"]


def test_the_jobs_have_the_time_that_the_profile_takes(launched, cluster):
    with contextlib.suppress(GateFailed):
        load(context(launched.root, profile="smoke", duration_s=2), "here")
    applied = json.loads((cluster / "applied.json").read_text())
    jobs = [one for one in applied["items"] if one["kind"] == "Job"]
    assert {one["spec"]["activeDeadlineSeconds"] for one in jobs} == {302}
    assert all(one["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE for one in jobs)


def test_servers_that_are_not_there_get_no_load(launched, cluster):
    deployment = json.loads((cluster / "deployment.json").read_text())
    (cluster / "deployment.json").write_text(json.dumps(deployment | {"status": {}}))
    with pytest.raises(EnvironmentFault, match="no ready pod"):
        load(context(launched.root), "here")
    assert "apply" not in (cluster / "calls").read_text()


def test_without_a_declared_image_nothing_is_started(cluster):
    with pytest.raises(DeclarationError, match=r"(?s)pipeline.yaml:\d+.*no image of the load generator"):
        load(Context(declaration.load(ROOT)), "here")
    assert not (Path(cluster) / "calls").exists()
