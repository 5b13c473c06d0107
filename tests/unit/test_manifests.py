"""The rendered manifests: figures that follow from the measurement, parts that agree with each other."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml

from launchpad import files, imagefile, machine
from launchpad.errors import DeclarationError, EnvironmentFault, GateFailed
from launchpad.kubernetes import measured, stage
from launchpad.kubernetes.measured import Measured, Probed
from launchpad.kubernetes.render import Inputs, ServerImage, render
from launchpad.kubernetes.sizing import replicas_for, size, with_zone_lost
from launchpad.modelserver.flags import FLAGS
from launchpad.spec import Kubernetes
from launchpad.stage import Context
from tests.conftest import MINIMAL, ROOT

RUN = "20260101-000000-abcd"
MEASURED = Measured(
    run=RUN,
    made="2026-01-01T00:00:00+00:00",
    capacity_rps=1000.0,
    p99_ms=100.0,
    ready_s=20.0,
    cores=1.55,
    peak_mib=400.0,
    machine={"processor": "A processor", "cores": 4},
    backend="embedded",
    limited="",
    probes=(Probed(200.0, 2.0, 1.8, 4.0, 0.3), Probed(1000.0, 6.0, 5.0, 80.0, 1.55), Probed(1100, 50, 40, 300, 1.6)),
)
IMAGE = ServerImage("registry/tiny", "abc", "sha256:" + "1" * 64, "", "tfs-launchpad/tiny")
SERVING = """\
serving:
  batching: {max_batch_size: 8, num_batch_threads: 2}
  container: {sysctls: {net.core.somaxconn: 4096}}
"""


@pytest.fixture
def manifests(declare):
    """Render a declaration's manifests; give every document of them by (file, kind)."""

    def rendered(kubernetes: str = "{}", text: str = MINIMAL + SERVING, **changes):
        declaration = declare(text + f"kubernetes: {kubernetes}\n")
        given = {"measured": MEASURED, "image": IMAGE, "versions": {"tiny": [1, 2]}, "locustfile": "# locust\n"}
        texts = render(Inputs(declaration, **(given | changes)))
        return texts, {
            (name, document["kind"]): document
            for name, text in texts.items()
            if name.endswith(".yaml")
            for document in yaml.safe_load_all(text)
        }

    return rendered


def pod_of(documents, file="base/deployment.yaml"):
    return documents[file, "Deployment"]["spec"]["template"]


def container_of(documents, file="base/deployment.yaml"):
    return pod_of(documents, file)["spec"]["containers"][0]


def test_a_pod_asks_for_the_cpu_and_memory_that_the_measured_server_used(manifests):
    texts, documents = manifests()
    granted = container_of(documents)["resources"]
    assert granted["requests"] == {"cpu": "1600m", "memory": "512Mi"}  # 1.55 cores; 400 MiB and a quarter more
    assert granted["limits"] == {"cpu": "4", "memory": "512Mi"}
    assert f"(run {RUN})" in texts["base/deployment.yaml"]


def test_declared_resources_take_the_place_of_measured_ones_and_the_target_follows(manifests):
    _, documents = manifests("{resources: {cpu: 3.1, memory: 2Gi}}")
    granted = container_of(documents)["resources"]
    assert granted["requests"] == granted["limits"] == {"cpu": "3100m", "memory": "2048Mi"}
    (metric,) = documents["base/horizontalpodautoscaler.yaml", "HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["resource"]["target"]["averageUtilization"] == 35  # 0.7 of 1.55 cores, of 3.1


def test_the_startup_probe_waits_five_times_the_measured_load_time(manifests):
    _, documents = manifests()
    probe = container_of(documents)["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 100
    quick = replace(MEASURED, ready_s=0.5)
    probe = container_of(manifests(measured=quick)[1])["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 60


def test_the_grace_period_holds_the_drain_and_grpc_clients_leave_within_it(manifests):
    _, documents = manifests("{drain_s: 40}")
    container = container_of(documents)
    drain = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert drain == 40 < pod_of(documents)["spec"]["terminationGracePeriodSeconds"]
    (age,) = (re.search(r"max_connection_age_ms=(\d+)", word) for word in container["args"] if "age_ms" in word)
    assert int(age[1]) * 1.1 < drain * 1000  # gRPC spreads ages by a tenth


def test_declared_arguments_of_the_grpc_server_are_kept_beside_the_age_of_connections(manifests):
    flag = "--grpc_channel_arguments="
    for declared, expected in [
        ("grpc.max_concurrent_streams=100", "grpc.max_concurrent_streams=100,grpc.max_connection_age_ms=15000"),
        ("grpc.max_connection_age_ms=9000", "grpc.max_connection_age_ms=9000"),
    ]:
        text = MINIMAL + f"serving: {{flags: {{grpc_channel_arguments: '{declared}'}}}}\n"
        assert [word for word in container_of(manifests(text=text)[1])["args"] if flag in word] == [flag + expected]


def test_the_arguments_are_the_flags_of_the_image(manifests):
    texts, documents = manifests()
    args = container_of(documents)["args"]
    assert "--port=8500" in args and "--batching_parameters_file=/config/batching_parameters.pbtxt" in args
    named = [word.partition("=/config/")[2] for word in args if "=/config/" in word]
    (generated,) = documents["base/kustomization.yaml", "Kustomization"]["configMapGenerator"]
    held = dict(entry.split("=") for entry in generated["files"])
    assert set(named) <= set(held)
    assert all(f"base/{path}" in texts for path in held.values())


def test_the_server_knows_every_flag_that_it_is_given(manifests):
    for word in container_of(manifests()[1])["args"]:
        assert word.partition("=")[0].removeprefix("--") in FLAGS


def test_probes_ask_ports_that_the_container_has(manifests):
    for text in (MINIMAL, MINIMAL + "serving: {ports: {rest: 0}}\n", MINIMAL + "serving: {ports: {grpc: 0}}\n"):
        _, documents = manifests(text=text)
        container = container_of(documents)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("startupProbe", "livenessProbe"):
            assert container[probe]["tcpSocket"]["port"] in ports
        health = container["readinessProbe"]["exec"]["command"]
        assert health[2:4] == [str(ports.get("http", 0)), str(ports.get("grpc", 0))]
        assert health[4:] == ["tiny"]
        services = [document for (_, kind), document in documents.items() if kind == "Service"]
        targets = {port["targetPort"] for service in services for port in service["spec"]["ports"] if "target" in port}
        assert targets <= set(ports)


def test_selectors_find_their_pods_and_only_those(manifests):
    _, documents = manifests()
    stable, canary = (
        pod_of(documents, file)["metadata"]["labels"]
        for file in ("base/deployment.yaml", "overlays/canary/deployment.yaml")
    )

    def selects(selector, labels):
        return selector.items() <= labels.items()

    for file, its, other in (
        ("base/deployment.yaml", stable, canary),
        ("overlays/canary/deployment.yaml", canary, stable),
    ):
        selector = documents[file, "Deployment"]["spec"]["selector"]["matchLabels"]
        assert selects(selector, its) and not selects(selector, other)
    services = {file: document["spec"]["selector"] for (file, kind), document in documents.items() if kind == "Service"}
    assert selects(services["base/service.yaml"], stable) and not selects(services["base/service.yaml"], canary)
    canary_service = services["overlays/canary/service.yaml"]
    assert selects(canary_service, canary) and not selects(canary_service, stable)
    for file, kind, key in (
        ("base/poddisruptionbudget.yaml", "PodDisruptionBudget", "selector"),
        ("base/networkpolicy.yaml", "NetworkPolicy", "podSelector"),
        ("components/monitoring/podmonitor.yaml", "PodMonitor", "selector"),
    ):
        selector = documents[file, kind]["spec"][key]["matchLabels"]
        assert selects(selector, stable) and selects(selector, canary)


def test_what_refers_to_another_object_names_one_that_is_there(manifests):
    _, documents = manifests()
    names = {
        (document["kind"], document["metadata"]["name"]) for document in documents.values() if "metadata" in document
    }
    for file, kind in (
        ("base/horizontalpodautoscaler.yaml", "HorizontalPodAutoscaler"),
        ("components/keda/scaledobject.yaml", "ScaledObject"),
    ):
        assert ("Deployment", documents[file, kind]["spec"]["scaleTargetRef"]["name"]) in names
    (rule,) = documents["overlays/canary/httproute.yaml", "HTTPRoute"]["spec"]["rules"]
    assert {backend["name"] for backend in rule["backendRefs"]} == {"tiny", "tiny-canary"}
    assert sum(backend["weight"] for backend in rule["backendRefs"]) == 100
    assert ("ServiceAccount", pod_of(documents)["spec"]["serviceAccountName"]) in names
    endpoint = documents["components/monitoring/podmonitor.yaml", "PodMonitor"]["spec"]["podMetricsEndpoints"][0]
    assert endpoint["port"] in {port["name"] for port in container_of(documents)["ports"]}


def test_nothing_can_be_written_and_nobody_is_root(manifests):
    _, documents = manifests()
    pod, container = pod_of(documents)["spec"], container_of(documents)
    assert (
        pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    )
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False


def test_the_autoscaler_targets_the_headroom_of_measured_capacity(manifests):
    _, documents = manifests("{autoscaling: {headroom: 0.5}}")
    (trigger,) = documents["components/keda/scaledobject.yaml", "ScaledObject"]["spec"]["triggers"]
    assert trigger["metadata"]["threshold"] == "500.0"
    _, documents = manifests("{autoscaling: {headroom: 0.5, signal: in_flight}}")
    (trigger,) = documents["components/keda/scaledobject.yaml", "ScaledObject"]["spec"]["triggers"]
    assert trigger["metadata"]["threshold"] == "1.75"  # 500 requests/s × 3.5 ms, between the probes at 200 and 1000


def test_a_model_of_its_own_batching_gets_it_in_each_version(manifests):
    text = MINIMAL.replace("{source: model.py:build}", "{source: model.py:build, batching: {max_batch_size: 4}}")
    _, documents = manifests(text=text + SERVING)
    mounts = {mount["mountPath"]: mount.get("subPath") for mount in container_of(documents)["volumeMounts"]}
    assert {path for path, key in mounts.items() if key == "tiny.batching_params.pbtxt"} == {
        "/models/tiny/1/batching_params.pbtxt",
        "/models/tiny/2/batching_params.pbtxt",
    }


def test_the_canary_serves_the_two_newest_versions_by_label(manifests):
    texts, _ = manifests(versions={"tiny": [1, 2, 5]})
    served = texts["components/canary-labels/models.config"]
    assert "specific { versions: 2 versions: 5 }" in served
    assert 'key: "stable" value: 2' in served and 'key: "canary" value: 5' in served


def test_an_image_that_was_not_pushed_is_waived_with_a_reason_and_a_pushed_one_is_not(manifests):
    texts, _ = manifests()
    assert "CKV_K8S_43" not in texts["base/deployment.yaml"]
    assert f"digest: {IMAGE.digest}" in texts["base/kustomization.yaml"]
    texts, _ = manifests(image=replace(IMAGE, digest=None, why="No image has been pushed"))
    assert "checkov.io/skip2: CKV_K8S_43=no image has been pushed" in texts["base/deployment.yaml"]


def test_gpus_are_requested_whole_on_nodes_that_have_them(manifests):
    _, documents = manifests("{gpu: {count: 2, node_selector: {pool: gpu}, taint: dedicated}}")
    (patch,) = documents["overlays/gpu/kustomization.yaml", "Kustomization"]["patches"]
    pod = yaml.safe_load(patch["patch"])["spec"]["template"]["spec"]
    granted = pod["containers"][0]["resources"]
    assert granted["requests"] == granted["limits"] == {"nvidia.com/gpu": "2"}
    assert pod["nodeSelector"] == {"pool": "gpu"} and pod["tolerations"][0]["key"] == "dedicated"


def test_overlays_take_in_what_is_declared(manifests):
    _, documents = manifests("{monitoring: false, sysctls: true, models: {source: claim}}")
    taken = documents["overlays/cpu/kustomization.yaml", "Kustomization"]["components"]
    assert taken == ["../../components/sysctls", "../../components/models-claim"]


def test_every_number_of_the_autoscaler_says_where_it_is_from(manifests):
    texts, _ = manifests("{demand: {usual_rps: 5000, peak_rps: 5100}, replicas: {max: 20}}")
    for name in ("base/horizontalpodautoscaler.yaml", "components/keda/scaledobject.yaml"):
        for line in texts[name].splitlines():
            if re.match(r"\s+(minReplica|maxReplica|averageUtil)\w*:", line):
                assert " # " in line


@pytest.mark.parametrize(
    ("needed", "zones", "replicas"),
    [(1, 1, 1), (1, 3, 2), (4, 3, 6), (6, 3, 9), (7, 3, 11), (10, 2, 20), (100, 3, 150)],
)
def test_enough_replicas_are_left_when_the_fullest_zone_is_lost(needed, zones, replicas):
    assert with_zone_lost(needed, zones) == replicas
    if zones > 1:
        assert replicas - -(-replicas // zones) >= needed
        assert replicas - 1 - -(-(replicas - 1) // zones) < needed


def test_replicas_work_at_the_headroom_and_one_is_to_spare():
    declared = Kubernetes.model_validate({"demand": {"usual_rps": 3500.0, "peak_rps": 7000.0}})
    sizing = size(declared, MEASURED)
    assert sizing.target_rps == 700 and sizing.replicas_min == 6 and sizing.peak_replicas == 15
    assert replicas_for(700.0, 700.0) == 1 and replicas_for(700.1, 700.0) == 2


# --- which capacity result is used ----------------------------------------------------------------------------


DOCUMENT = {
    "run": RUN,
    "made": "2026-01-01T00:00:00+00:00",
    "objective": {"p99_ms": 100.0},
    "capacity_rps": 1000.0,
    "interval_rps": [1000.0, 1040.0],
    "limited": "",
    "server": {"backend": "embedded", "ready_s": 3.0, "pid": 7},
    "server_peak_mib": 300.0,
    "probes": [
        {"rate_rps": 500.0, "mean_ms": 2.0, "p50_ms": 1.5, "p99_ms": 9.0, "server_cores": 0.7},
        {"rate_rps": 1000.0, "mean_ms": 5.0, "p50_ms": 4.0, "p99_ms": 90.0, "server_cores": 1.4},
    ],
}


@pytest.fixture
def context(declare):
    """A checkout with one exported version, and no capacity result."""
    declaration = declare(MINIMAL + "objectives: {p99_ms: 100}\nkubernetes: {replicas: {min: 3, max: 4}}\n")
    context = Context(declaration)
    files.write_text(context.layout.version("tiny", 1) / "saved_model.pb", "a model")
    files.write_text(context.layout.locustfile, "# locust\n")
    return context


@pytest.fixture
def leave(context):
    """Leave a capacity result in a run folder."""

    def left(run: str = RUN, **changes):
        pipeline = context.declaration.pipeline
        traffic = [line.model_dump(mode="json") for line in pipeline.traffic(pipeline.loadtest.profiles["steady"])]
        of_here = {
            "run": run,
            "traffic": traffic,
            "models": {"tiny": files.digest(files.tree(context.layout.versions("tiny")))},
            "machine": machine.describe(),
        }
        files.write_json(context.layout.results(run) / "capacity.json", DOCUMENT | of_here | changes)

    return left


def test_without_a_capacity_result_the_command_that_makes_one_is_named(context):
    with pytest.raises(EnvironmentFault, match="run `invoke launch`, then `invoke capacity`"):
        measured.latest(context)


def test_the_newest_result_is_taken(context, leave):
    leave("a", made="2026-01-02T00:00:00+00:00", capacity_rps=2000.0)
    leave("b", made="2026-01-01T00:00:00+00:00")
    assert measured.latest(context)[0].run == "a"


def test_a_lower_bound_says_nothing_against_a_higher_result(context, leave):
    leave("a", made="2026-01-01T00:00:00+00:00", capacity_rps=2000.0)
    leave("b", made="2026-01-02T00:00:00+00:00", limited="requests were sent late")
    assert measured.latest(context)[0].run == "a"
    stage.manifests(context)
    assert measured.latest(context)[0].run == "a"  # the kept one

    leave("c", made="2026-01-03T00:00:00+00:00", capacity_rps=3000.0, limited="requests were sent late")
    assert measured.latest(context)[0].run == "c"


@pytest.mark.parametrize(
    "changes", [{"limited": ""}, {"machine": {"processor": "Another", "cores": 64}}, {"models": {"tiny": "another"}}]
)
def test_a_result_that_is_no_lower_bound_or_of_something_else_counts_for_itself(context, leave, changes):
    leave("a", made="2026-01-01T00:00:00+00:00", capacity_rps=2000.0)
    leave("b", made="2026-01-02T00:00:00+00:00", **({"limited": "requests were sent late"} | changes))
    stage.manifests(replace(context, force=True))
    assert files.read_json(context.layout.kubernetes_capacity)["run"] == "b"


def test_a_result_for_other_traffic_or_another_objective_is_passed_over(context, leave):
    leave("a")
    leave("b", made="2026-01-03T00:00:00+00:00", traffic=[])
    leave("c", made="2026-01-03T00:00:00+00:00", objective={"p99_ms": 20.0})
    assert measured.latest(context)[0].run == "a"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"models": {"tiny": "of something else"}}, "other versions of tiny"),
        ({"machine": {"processor": "Another", "cores": 64}}, "another machine: Another with 64 cores"),
    ],
)
def test_a_result_of_other_models_or_another_machine_is_refused_unless_forced(context, leave, changes, reason):
    leave(**changes)
    with pytest.raises(EnvironmentFault, match=reason):
        stage.manifests(context)
    assert not context.layout.kubernetes.exists()

    stage.manifests(replace(context, force=True))
    assert reason in files.read_json(context.layout.kubernetes_capacity)["despite"][0]
    stage.check(context)


def test_a_fresh_clone_reproduces_the_manifests_from_the_kept_result(context, leave):
    leave()
    stage.manifests(context)
    files.remove(context.layout.results(RUN))

    assert "are what pipeline.yaml and k8s/capacity.json give" in stage.check(context)


def test_drift_is_told_by_file(context, leave):
    leave()
    stage.manifests(context)
    path = context.layout.kubernetes / "base/horizontalpodautoscaler.yaml"
    path.write_text(path.read_text().replace("maxReplicas: 4", "maxReplicas: 40"))
    (context.layout.kubernetes / "base/stray.yaml").write_text("# Rendered from pipeline.yaml, once\n")

    with pytest.raises(GateFailed) as failed:
        stage.check(context)
    told = {problem.where: problem.what for problem in failed.value.problems}
    assert told["k8s/base/stray.yaml"] == "is rendered no more"
    assert "differs" in told["k8s/base/horizontalpodautoscaler.yaml"]

    stage.manifests(context)
    stage.check(context)


def test_models_that_changed_since_make_the_check_fail(context, leave):
    leave()
    stage.manifests(context)
    files.write_text(context.layout.version("tiny", 1) / "saved_model.pb", "another model")
    with pytest.raises(EnvironmentFault, match="other versions of tiny"):
        stage.check(context)


BATCHES = "{steady: {users: 1, duration_s: 5, traffic: [{model: tiny, batch: 4}]}}"


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("p99_ms: 100", "p99_ms: 20", "p99 of 100.0 ms; 20 is"),
        ("kubernetes:", f"loadtest: {{profile: steady, profiles: {BATCHES}}}\nkubernetes:", "other traffic"),
    ],
)
def test_a_kept_result_for_another_objective_or_other_traffic_is_no_longer_one(
    context, leave, declare, before, after, reason
):
    leave()
    stage.manifests(context)
    files.remove(context.layout.results(RUN))
    text = (context.layout.root / "pipeline.yaml").read_text()
    changed = Context(declare(text.replace(before, after)))
    with pytest.raises(EnvironmentFault, match=reason):
        stage.check(changed)
    with pytest.raises(EnvironmentFault, match="no capacity has been measured for the declared traffic and objective"):
        stage.manifests(replace(changed, force=True))


def test_pods_that_can_never_be_busy_enough_for_another_to_start_are_refused(context, leave, declare):
    """1.4 cores were used at capacity: 0.7 of it is 98 % of 1 core, and a tenth more is what Kubernetes asks for."""
    leave()
    text = (context.layout.root / "pipeline.yaml").read_text()
    for cpu, refused in ((1, True), (1.2, False)):
        context = Context(declare(text.replace("max: 4}}", f"max: 4}}, resources: {{cpu: {cpu}}}}}")))
        if refused:
            with pytest.raises(DeclarationError, match="pods of 1 cores never get to 98 %"):
                stage.manifests(context)
        else:
            stage.manifests(context)


def test_a_result_that_is_cut_short_is_told(context, leave):
    leave(probes=[{"rate_rps": 5.0, "p99_ms": 1.0}])
    with pytest.raises(EnvironmentFault, match=r"no whole capacity result .*mean_ms"):
        measured.latest(context)


def test_a_demand_beyond_the_replica_limit_is_refused_by_file_and_line(context, leave, declare):
    leave()
    text = (context.layout.root / "pipeline.yaml").read_text()
    demand = "{replicas: {min: 3, max: 4}, demand: {usual_rps: 500, peak_rps: 50000}}"
    declaration = declare(text.replace("{replicas: {min: 3, max: 4}}", demand))
    with pytest.raises(DeclarationError, match=r"pipeline.yaml:\d+: kubernetes.demand.peak_rps: needs 108 replicas"):
        stage.manifests(Context(declaration))


def test_the_committed_manifests_are_those_of_the_declaration_and_the_kept_result():
    from launchpad import declaration

    stage.check(Context(declaration.load(ROOT)))


def test_an_image_counts_by_digest_once_it_was_pushed_and_holds_what_is_here(context, declare):
    layout = context.layout
    assert stage.server_image(layout, context.declaration.pipeline).digest is None
    declaration = declare(MINIMAL + "kubernetes: {registry: registry.example/team}\n")
    record = imagefile.Image(
        tag="tfs-launchpad/tiny:1",
        id="sha256:2",
        digest="sha256:3",
        size_bytes=1,
        content=imagefile.content(layout, declaration.pipeline),
        base={},
        layers=[],
        holds={},
        revision="unknown",
    )
    record.save(layout)
    image = stage.server_image(layout, declaration.pipeline)
    assert (image.name, image.digest) == ("registry.example/team/tfs-launchpad/tiny", "sha256:3")

    replace(record, content="something else").save(layout)
    image = stage.server_image(layout, declaration.pipeline)
    assert image.digest is None and "something else" in image.why
