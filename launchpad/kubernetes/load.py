"""`invoke loadtest --kubernetes`: load from pods on the servers of a cluster; the run is kept here like any other.

The master's pod prints what each worker counted in each second, as Locust processes of this machine do. `kubectl logs`
is where a local run has Locust itself.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

from launchpad import console
from launchpad.errors import DeclarationError, EnvironmentFault, GateFailed
from launchpad.kubernetes import stage
from launchpad.kubernetes.kubectl import Kubectl
from launchpad.kubernetes.render import LOAD_GRACE_S, load_files
from launchpad.loadtest.stage import Target, measure, profile_of
from launchpad.server import Server
from launchpad.stage import Context

START_S = 300
"""How long pods may take to start, images pulled."""


def load(context: Context, cluster: str) -> None:
    """Run the chosen profile from pods of a kubectl context's cluster, and take them away again.

    Raises DeclarationError where the load generator's image is not declared, EnvironmentFault where kubectl or the
    cluster refuses or serves nothing, GateFailed where the run or an objective does not hold.
    """
    stage.check(context)
    pipeline = context.declaration.pipeline
    generators = pipeline.kubernetes.generators
    if generators.image is None or "@sha256:" not in generators.image:
        raise DeclarationError(
            "kubernetes.generators.image: no image of the load generator is declared by digest",
            context.declaration.where("kubernetes", "generators"),
            "build and push it as docs/kubernetes.md says, then run `invoke manifests`",
        )
    kubectl = Kubectl(cluster, pipeline.kubernetes.namespace)
    target = _target(context, kubectl)
    objects = _with_profile(context, kubectl.build(context.layout.kubernetes / "overlays" / "loadtest"))
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    _clear(kubectl, text)  # jobs of a run that was cut short cannot be changed
    try:
        kubectl.run("apply", "--filename=-", text=text)
        console.say(f"  {generators.workers} workers in {cluster}, namespace {kubectl.namespace}")
        outcome = measure(replace(context, processes=generators.workers), target)
    finally:
        _clear(kubectl, text)
    console.say(f"  {outcome.status}: {outcome.detail}")
    for path in outcome.look_at:
        console.say(f"  {context.layout.relative(path)}")
    if outcome.failures:
        raise GateFailed(list(outcome.failures))


def _clear(kubectl: Kubectl, text: str) -> None:
    kubectl.run("delete", "--filename=-", "--ignore-not-found", "--wait=true", text=text)


def _target(context: Context, kubectl: Kubectl) -> Target:
    """Return the servers of the cluster as what is driven. Raises EnvironmentFault where none is ready."""
    pipeline = context.declaration.pipeline
    found = json.loads(kubectl.run("get", f"deployment/{pipeline.name}", "--output=json"))
    ready = found["status"].get("readyReplicas", 0)
    if not ready:
        fix = "run `invoke deploy-k8s`"
        raise EnvironmentFault(f"deployment/{pipeline.name} has no ready pod", f"context {kubectl.context}", fix)
    (container,) = found["spec"]["template"]["spec"]["containers"]
    granted = container["resources"]["limits"]
    server = Server(
        instance=f"{kubectl.context}/{kubectl.namespace}/{found['metadata'].get('uid', '')}",
        backend="kubernetes",
        why=f"context {kubectl.context}",
        content=container["image"],
        command=container["args"],
        rest_port=pipeline.serving.ports.rest,
        grpc_port=pipeline.serving.ports.grpc,
        metrics_path=None,
        models=list(pipeline.models),
    )
    machine = {
        "processor": f"{ready} pods in {kubectl.context}, each with {granted['cpu']} CPU and {granted['memory']}",
        "cores": ready * _cores(granted["cpu"]),
        "memory_gib": "not known here",
        "system": "Kubernetes",
        "python": "not known here",
        "tensorflow": "not known here",
    }
    master = f"job/{pipeline.name}-load-master"
    logs = [*kubectl.command, "logs", "--follow", f"--pod-running-timeout={START_S}s", master]
    return Target(server, machine, lambda: "", logs)


def _cores(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def _with_profile(context: Context, objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the objects with the chosen profile, and time for it, in place of the declared default."""
    pipeline = context.declaration.pipeline
    _, profile = profile_of(context)
    files = load_files(profile, pipeline.kubernetes.generators.workers)
    changed = []
    for one in objects:
        if one["kind"] == "ConfigMap" and set(one["data"]) == set(files):
            one = one | {"data": files}
        if one["kind"] == "Job":
            one = one | {"spec": one["spec"] | {"activeDeadlineSeconds": math.ceil(profile.duration_s) + LOAD_GRACE_S}}
        changed.append(one)
    return changed
