"""`invoke deploy-k8s` with a stand-in for kubectl and a real server behind its port-forward. No cluster is asked.

The stand-in builds kustomizations with the real kubectl. It does not do what a cluster does: admission, scheduling,
a real rollout and a real rollback are not run here.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

from launchpad import declaration, imagefile
from launchpad.errors import DeclarationError, EnvironmentFault, GateFailed
from launchpad.imagefile import Image
from launchpad.kubernetes import stage
from launchpad.kubernetes.deploy import deploy
from launchpad.layout import Layout
from launchpad.stage import Context
from tests.conftest import ROOT
from tests.integration.conftest import Checkout

STAND_IN = """#!{python}
import json, pathlib, subprocess, sys, time

here = pathlib.Path(__file__).parent
state = json.loads((here / "state.json").read_text())
words = [word for word in sys.argv[1:] if not word.startswith(("--context=", "--namespace="))]
line = " ".join(words)
with (here / "calls").open("a") as calls:
    calls.write(line + "\\n")
for start, said in state["fail"].items():
    if start in line:
        sys.exit(said)
if line.startswith("config get-contexts"):
    print("\\n".join(state["contexts"]))
elif words[0] == "kustomize":
    sys.exit(subprocess.run([{kubectl!r}, *words]).returncode)
elif words[0] == "diff":
    print(state["diff"], end="")
    sys.exit(1 if state["diff"] else 0)
elif words[0] == "get" and words[1].startswith("deployment/"):
    print(state["there"])
elif words[:2] == ["get", "deployments"]:
    print("\\n".join(state["deployments"]))
elif words[0] == "get":
    print("\\n".join(name for name in state["objects"] if name == words[1]), end="")
elif words[0] == "port-forward":
    print(f"Forwarding from 127.0.0.1:{{state['port']}} -> 8501", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """A checkout with a running server, its manifests rendered, and an image that counts as pushed."""
    from launchpad.launch.stage import stop

    made = Checkout(tmp_path_factory.mktemp("cluster") / "checkout")
    shutil.copytree(ROOT / "k8s", made.root / "k8s")
    made.edit(("  namespace: serving\n", "  namespace: serving\n  registry: registry.example/team\n"))
    pipeline = declaration.load(made.root).pipeline
    Image(
        tag=f"tfs-launchpad/{pipeline.name}:test",
        id="sha256:1",
        digest="sha256:" + "d" * 64,
        size_bytes=1,
        content=imagefile.content(made.layout, pipeline),
        base={},
        layers=[],
        holds={},
        revision="unknown",
    ).save(made.layout)
    made.invoke("manifests", check=True)
    made.invoke("launch", check=True)
    yield made
    stop(made.layout)


class Cluster:
    """The stand-in, what it is to say, and what it was asked."""

    def __init__(self, folder: Path, kubectl: Path, port: int) -> None:
        self.folder = folder
        self.state = {
            "contexts": ["here"],
            "diff": "-old\n+new",
            "there": "7",
            "objects": ["horizontalpodautoscalers.autoscaling/digits"],
            "deployments": ["deployment.apps/digits"],
            "port": port,
            "fail": {},
        }
        program = folder / "kubectl"
        program.write_text(STAND_IN.format(python=sys.executable, kubectl=str(kubectl)))
        program.chmod(0o755)
        self.says()

    def says(self, **changes) -> None:
        self.state |= changes
        (self.folder / "state.json").write_text(json.dumps(self.state))

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def changes(self) -> list[str]:
        """What was asked that changes a cluster."""
        return [
            " ".join(word for word in line.split() if not word.startswith("--"))
            for line in self.calls
            if line.startswith(("apply", "rollout undo", "delete")) and "--dry-run" not in line
        ]


@pytest.fixture
def cluster(launched, tools, tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    stand_in = Cluster(folder, tools.kubectl, launched.rest_port)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return stand_in


def context_of(checkout) -> Context:
    return Context(declaration.load(checkout.root))


def test_it_shows_the_difference_asks_applies_waits_and_tries_every_signature(launched, cluster, capsys):
    questions = []

    deploy(context_of(launched), "here", "cpu", yes=False, ask=lambda question: questions.append(question) or "y")

    assert questions == ["apply this to here, namespace serving? [y/N] "]
    said = capsys.readouterr().out
    assert "+new" in said and "40 requests answered as the exporter says" in said  # 2 models, 4 signatures, 5 each
    order = [line.split()[0] for line in cluster.calls]
    assert order == ["config", "kustomize", "get", "apply", "diff", "get", "apply", "rollout", "port-forward", "get"]
    assert cluster.changes == ["apply"]


def test_a_no_changes_nothing(launched, cluster):
    with pytest.raises(DeclarationError, match="not applied"):
        deploy(context_of(launched), "here", "cpu", yes=False, ask=lambda _: "")
    assert not cluster.changes


def test_nobody_to_ask_changes_nothing(launched, cluster, monkeypatch):
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    with pytest.raises(DeclarationError, match="nobody is there to ask"):
        deploy(context_of(launched), "here", "cpu", yes=False)
    assert not cluster.changes


def test_a_cluster_that_is_as_declared_is_tried_out_and_left(launched, cluster, capsys):
    cluster.says(diff="")
    deploy(context_of(launched), "here", "cpu", yes=False)
    assert "as declared" in capsys.readouterr().out and not cluster.changes


@pytest.mark.parametrize(
    ("overlay", "there"),
    [("keda", "horizontalpodautoscalers.autoscaling/digits"), ("cpu", "scaledobjects.keda.sh/digits")],
)
def test_the_autoscaler_of_another_overlay_has_to_go_first(launched, cluster, overlay, there):
    cluster.says(objects=[there])
    with pytest.raises(EnvironmentFault, match=rf"(?s)two autoscalers.*kubectl delete --namespace=serving {there};"):
        deploy(context_of(launched), "here", overlay, yes=True)
    assert not cluster.changes


def test_a_cluster_without_keda_has_no_autoscaler_of_it(launched, cluster):
    cluster.says(fail={"get scaledobjects": 'error: the server doesn\'t have a resource type "scaledobjects"'})
    deploy(context_of(launched), "here", "cpu", yes=True)
    assert cluster.changes == ["apply"]


def test_a_deployment_of_another_overlay_is_told_with_what_takes_it_away(launched, cluster, capsys):
    cluster.says(deployments=["deployment.apps/digits", "deployment.apps/digits-canary"])
    deploy(context_of(launched), "here", "cpu", yes=True)
    words = " ".join(capsys.readouterr().out.split())
    assert "kubectl delete --namespace=serving deployment.apps/digits-canary service/digits-canary" in words
    assert cluster.changes == ["apply"]


def test_who_may_not_list_deployments_has_deployed_all_the_same(launched, cluster, capsys):
    cluster.says(fail={"get deployments": "Error from server (Forbidden): deployments.apps is forbidden"})
    deploy(context_of(launched), "here", "cpu", yes=True)
    assert "rolled out" in capsys.readouterr().out


def test_a_rollout_that_fails_is_taken_back(launched, cluster):
    cluster.says(fail={"rollout status": "error: deployment exceeded its progress deadline"})
    with pytest.raises(GateFailed, match=r"(?s)did not roll out.*progress deadline.*was rolled back"):
        deploy(context_of(launched), "here", "cpu", yes=True)
    assert cluster.changes == ["apply", "rollout undo deployment/digits"]
    assert cluster.calls[-1].endswith("--to-revision=7")  # by itself it goes back from where nothing was changed, too


def test_an_interruption_goes_back_as_well(launched, cluster, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("launchpad.kubernetes.deploy.smoke", interrupted)
    with pytest.raises(KeyboardInterrupt):
        deploy(context_of(launched), "here", "cpu", yes=True)
    assert cluster.changes == ["apply", "rollout undo deployment/digits"]


def test_without_examples_to_try_it_out_with_nothing_is_changed(launched, cluster, monkeypatch):
    monkeypatch.setattr(Layout, "examples", lambda self, *_: self.root / "not there")
    with pytest.raises(EnvironmentFault, match="digits-mlp has no examples"):
        deploy(context_of(launched), "here", "cpu", yes=True)
    assert not cluster.changes


def test_answers_that_do_not_come_are_a_failure_too(launched, cluster):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        cluster.says(port=unused.getsockname()[1])
        with pytest.raises(GateFailed, match=r"(?s)digits-mlp serving_default.*was rolled back"):
            deploy(context_of(launched), "here", "cpu", yes=True)
    assert cluster.changes == ["apply", "rollout undo deployment/digits"]


def test_a_first_deployment_has_nothing_to_go_back_to(launched, cluster):
    cluster.says(there="", fail={"rollout status": "error: timed out"})
    with pytest.raises(GateFailed, match="nothing to go back to"):
        deploy(context_of(launched), "here", "cpu", yes=True)
    assert cluster.changes == ["apply"]


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ('Error from server (Forbidden): deployments.apps is forbidden: User "me"', "ask for the rights"),
        ('Error from server (NotFound): namespaces "serving" not found', "kubectl create namespace serving"),
        ('no matches for kind "PodMonitor" in version "monitoring.coreos.com/v1"', "kubernetes.monitoring: false"),
        ("The connection to the server 10.0.0.1:6443 was refused - connection refused", "is the cluster up"),
    ],
)
def test_what_the_cluster_refuses_is_told_before_anything_changes(launched, cluster, said, fix):
    cluster.says(fail={"--dry-run=server": said})
    with pytest.raises(EnvironmentFault) as refused:
        deploy(context_of(launched), "here", "cpu", yes=True)
    (problem,) = refused.value.problems
    assert said in problem.what and fix in problem.fix and not cluster.changes


def test_a_context_that_is_not_there_is_named_with_those_that_are(launched, cluster):
    with pytest.raises(DeclarationError, match=r"(?s)no context 'there'.*known: here"):
        deploy(context_of(launched), "there", "cpu", yes=True)


def test_an_overlay_that_is_not_there_is_named_with_those_that_are(launched, cluster):
    with pytest.raises(DeclarationError, match=r"(?s)no overlay 'gpus'.*canary, cpu, gpu, keda, loadtest"):
        deploy(context_of(launched), "here", "gpus", yes=True)


def test_without_kubectl_the_user_is_told(launched, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvironmentFault, match="no kubectl on the PATH"):
        deploy(context_of(launched), "here", "cpu", yes=True)


def test_gpu_nodes_do_not_get_an_image_without_gpu_code(launched, cluster):
    with pytest.raises(DeclarationError, match="no code for GPUs"):
        deploy(context_of(launched), "here", "gpu", yes=True)
    assert not cluster.changes


def test_manifests_that_have_drifted_are_not_applied(launched, cluster):
    path = launched.root / "k8s/base/deployment.yaml"
    before = path.read_text()
    path.write_text(before + "# by hand\n")
    try:
        with pytest.raises(GateFailed, match="run `invoke manifests`"):
            deploy(context_of(launched), "here", "cpu", yes=True)
    finally:
        path.write_text(before)
    assert not cluster.calls


def test_an_image_that_was_not_pushed_is_not_deployed(launched, cluster):
    record = launched.layout.image_record
    text = record.read_text()
    record.unlink()
    try:
        stage.manifests(context_of(launched))
        with pytest.raises(DeclarationError, match="not named by digest"):
            deploy(context_of(launched), "here", "cpu", yes=True)
    finally:
        record.write_text(text)
        stage.manifests(context_of(launched))
    assert not cluster.changes
