"""`invoke deploy-k8s`: shows what it changes in a cluster, asks, applies, waits, tries it out, goes back on failure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from launchpad import console, exported
from launchpad.client import GrpcClient, RestClient, ServerError
from launchpad.errors import DeclarationError, EnvironmentFault, GateFailed, LaunchpadError, Problem
from launchpad.examples import Examples, Values, same_answer
from launchpad.kubernetes import stage
from launchpad.kubernetes.kubectl import Kubectl
from launchpad.spec import has_no_gpu_code
from launchpad.stage import Context

ROLLOUT_SPARE_S = 60
ASKED = 5
"""Examples that each signature is asked in the smoke test."""
AUTOSCALERS = {
    "HorizontalPodAutoscaler": "horizontalpodautoscalers.autoscaling",
    "ScaledObject": "scaledobjects.keda.sh",
}
"""What overlays scale with, by kind, as kubectl is asked for it."""


def deploy(context: Context, cluster: str, overlay: str, yes: bool, ask: Callable[[str], str] = input) -> None:
    """Bring an overlay into the cluster of a kubectl context.

    Raises DeclarationError for an overlay or a context that there is not and for images without a digest,
    EnvironmentFault where kubectl or the cluster refuses, or another overlay's autoscaler is there, GateFailed where
    manifests have drifted, or the rollout or the smoke test fails: the Deployments are then back at what they were
    before.
    """
    folder = _overlay(context, overlay)
    stage.check(context)
    asked_with = _examples(context)
    kubectl = Kubectl(cluster, context.declaration.pipeline.kubernetes.namespace)
    objects = kubectl.build(folder)
    _refuse_images(context, overlay, objects)
    _refuse_second_autoscaler(kubectl, context.declaration.pipeline.name, objects)
    deployments = [one["metadata"]["name"] for one in objects if one["kind"] == "Deployment"]
    kubectl.run("apply", f"--kustomize={folder}", "--dry-run=server")  # rights, kinds and namespace, before any change
    difference = kubectl.differs(folder)
    if difference:
        console.say(difference.rstrip())
        _ask(f"apply this to {cluster}, namespace {kubectl.namespace}?", yes, ask)
        before = {name: _revision(kubectl, name) for name in deployments}
        kubectl.run("apply", f"--kustomize={folder}")
    else:
        console.say("the cluster is as declared")
        before = {}
    try:
        for deployment in _of_kind(objects, "Deployment"):
            _await(kubectl, deployment)
        asked = smoke(context, kubectl, asked_with)
    except LaunchpadError as error:
        raise GateFailed([*error.problems, *_go_back(kubectl, before)]) from None
    except KeyboardInterrupt:
        for problem in _go_back(kubectl, before):
            console.say(str(problem))
        raise
    console.say(f"done: {', '.join(deployments)} rolled out; {asked} requests answered as the exporter says", "green")
    for name in _others(kubectl, context.declaration.pipeline.name, deployments):
        console.say(
            f"  ! {name} is of another overlay and goes on as it is; when no route leads to it any more: "
            f"kubectl delete --namespace={kubectl.namespace} {name} service/{name.partition('/')[2]}",
            "yellow",
        )


def _overlay(context: Context, overlay: str) -> Any:
    folder = context.layout.kubernetes / "overlays"
    known = sorted(path.parent.name for path in folder.glob("*/kustomization.yaml"))
    if overlay not in known:
        fix = f"rendered: {', '.join(known)}" if known else "run `invoke manifests`"
        raise DeclarationError(f"there is no overlay {overlay!r}", "--overlay", fix)
    if overlay == "loadtest":
        raise DeclarationError("loadtest is no deployment", "--overlay", "run `invoke loadtest --kubernetes CONTEXT`")
    return folder / overlay


def _refuse_images(context: Context, overlay: str, objects: list[dict[str, Any]]) -> None:
    """Raise DeclarationError for images without a digest, and for one without GPU code on GPU nodes."""
    declared = context.declaration
    for one in _of_kind(objects, "Deployment"):
        for container in one["spec"]["template"]["spec"]["containers"]:
            if "@sha256:" not in container["image"]:
                raise DeclarationError(
                    f"{container['image']} is not named by digest, so nobody could say what runs",
                    declared.where("kubernetes"),
                    "run `invoke build --push REGISTRY`, declare kubernetes.registry, run `invoke manifests`",
                )
    kubernetes = declared.pipeline.kubernetes
    if overlay == "gpu" and not kubernetes.gpu.image and has_no_gpu_code(declared.pipeline.serving.image):
        raise DeclarationError(
            f"the image is built on {declared.pipeline.serving.image}, which has no code for GPUs",
            declared.where("kubernetes", "gpu"),
            "declare kubernetes.gpu.image",
        )


def _refuse_second_autoscaler(kubectl: Kubectl, name: str, objects: list[dict[str, Any]]) -> None:
    """Raise EnvironmentFault where the cluster has an autoscaler that the overlay lacks: another overlay's, which an
    apply would leave. Two on one Deployment hinder each other, and KEDA refuses to be the second."""
    kinds = {one["kind"] for one in objects}
    for kind, resource in AUTOSCALERS.items():
        if kind not in kinds and kubectl.has(resource, name):
            raise EnvironmentFault(
                f"the cluster has a {kind} {name!r}, of another overlay: two autoscalers hinder each other",
                f"context {kubectl.context}",
                f"kubectl delete --namespace={kubectl.namespace} {resource}/{name}; the pods stay as many as they are",
            )


def _others(kubectl: Kubectl, name: str, deployments: Collection[str]) -> list[str]:
    """Return the Deployments of this pipeline that an overlay lacks, which its apply has left, as kubectl names them.

    None where they may not be listed: that takes nothing from what was rolled out.
    """
    ours = f"app.kubernetes.io/name={name},app.kubernetes.io/managed-by=tfs-launchpad"
    try:
        there = kubectl.run("get", "deployments", f"--selector={ours}", "--output=name").split()
    except EnvironmentFault:
        return []
    return [one for one in there if one.partition("/")[2] not in deployments]


def _of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] == kind]


def _ask(question: str, yes: bool, ask: Callable[[str], str]) -> None:
    if yes:
        return
    if ask is input and not sys.stdin.isatty():
        raise DeclarationError("nobody is there to ask", fix="look at the difference above, then run with --yes")
    if ask(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise DeclarationError("not applied, as you say")


def _await(kubectl: Kubectl, deployment: dict[str, Any]) -> None:
    """Wait until a Deployment has rolled out. Raises GateFailed, with its pods' last events, where it does not."""
    name, timeout_s = deployment["metadata"]["name"], deployment["spec"]["progressDeadlineSeconds"] + ROLLOUT_SPARE_S
    try:
        kubectl.run("rollout", "status", f"deployment/{name}", f"--timeout={timeout_s}s", timeout_s=timeout_s + 30)
    except EnvironmentFault as fault:
        events = _events(kubectl)
        raise GateFailed(f"deployment/{name} did not roll out: {fault.problems[0].what}", fix=events) from None


def _events(kubectl: Kubectl) -> str:
    try:
        said = kubectl.run("get", "events", "--field-selector=type=Warning", "--sort-by=.lastTimestamp").splitlines()
    except EnvironmentFault:
        return ""
    return "\n    ".join(["the last warnings:", *said[-5:]]) if said else ""


def _examples(context: Context) -> dict[str, Examples]:
    """Return each model's examples. Raises EnvironmentFault, before any change, for one that is not exported."""
    models = context.declaration.pipeline.models
    return {name: exported.examples(context.layout, name, model.version) for name, model in models.items()}


def smoke(context: Context, kubectl: Kubectl, asked_with: Mapping[str, Examples]) -> int:
    """Ask every signature through a port-forward; return how many requests were answered as the exporter says.

    Raises GateFailed for those that were not.
    """
    pipeline = context.declaration.pipeline
    ports = pipeline.serving.ports
    what, port = (
        (f"service/{pipeline.name}", ports.rest) if ports.rest else (f"service/{pipeline.name}-grpc", ports.grpc)
    )
    problems, asked = [], 0
    with kubectl.forwarded(what, port) as local:
        client = RestClient(f"http://127.0.0.1:{local}") if ports.rest else GrpcClient(f"127.0.0.1:{local}")
        for name, examples in asked_with.items():
            for signature in examples.inputs:
                for index in range(min(ASKED, len(examples))):
                    fault = _wrong(client, name, signature, examples, index)
                    asked += 1
                    if fault:
                        problems.append(Problem(f"{name} {signature}: {fault}", what))
                        break
    if problems:
        raise GateFailed(problems)
    return asked


def _wrong(client: RestClient | GrpcClient, model: str, signature: str, examples: Examples, index: int) -> str:
    """Return what is wrong with the answer to an example; empty where nothing is."""
    row = slice(index, index + 1)
    inputs: dict[str, Values] = {name: values[row] for name, values in examples.inputs[signature].items()}
    expected = {name: values[row] for name, values in examples.outputs[signature].items()}
    try:
        answer = client.predict(model, signature, inputs)
    except ServerError as error:
        return error.kind
    if set(answer) == {""}:  # REST gives a single output bare
        answer = dict(zip(expected, answer.values(), strict=False))
    right = answer.keys() == expected.keys() and all(same_answer(expected[key], answer[key]) for key in expected)
    return "" if right else "the answer is not the exporter's"


def _revision(kubectl: Kubectl, name: str) -> str:
    """Return the revision that a Deployment is at; empty where there is none yet.

    It is named when going back: `rollout undo` by itself takes one that was not changed to what it was before that.
    """
    annotation = r"{.metadata.annotations.deployment\.kubernetes\.io/revision}"
    return kubectl.run("get", f"deployment/{name}", "--ignore-not-found", f"--output=jsonpath={annotation}").strip()


def _go_back(kubectl: Kubectl, before: dict[str, str]) -> list[Problem]:
    """Bring the Deployments back to the revisions that they had; return what is to be said of it."""
    said = []
    for name, revision in before.items():
        if not revision:
            what = f"deployment/{name} is new: there is nothing to go back to, it is left for you to look at"
            said.append(Problem(what, fix=f"kubectl delete deployment/{name} takes it away"))
            continue
        try:
            kubectl.run("rollout", "undo", f"deployment/{name}", f"--to-revision={revision}")
            said.append(Problem(f"deployment/{name} was rolled back to its revision {revision}"))
        except EnvironmentFault as fault:
            said.append(Problem(f"deployment/{name} could not be rolled back: {fault.problems[0].what}"))
    return said
