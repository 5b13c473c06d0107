"""The manifests as kustomize builds them: valid for the API, for a policy scan, for Prometheus; and what none sees."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from launchpad import declaration, files
from launchpad.kubernetes import measured, stage
from launchpad.kubernetes.render import OVERLAYS, render
from launchpad.stage import Context
from tests.conftest import ROOT
from tests.integration.kubernetes.conftest import program

SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
NEWEST = sorted(
    (path.name.removesuffix("-local-strict").removeprefix("v") for path in SCHEMAS.glob("*-local-strict")),
    key=lambda version: [int(number) for number in version.split(".")],
)[-3:]
CUSTOM_GROUPS = ("keda.sh", "gateway.networking.k8s.io", "monitoring.coreos.com")


@pytest.fixture(scope="module")
def built(tools):
    """Every overlay of the repository, built."""
    return {name: tools.build(ROOT / "k8s" / "overlays" / name) for name in OVERLAYS}


@pytest.fixture
def variant(tmp_path):
    """Write the manifests of a changed declaration; give their folder."""

    def written(*changes: tuple[str, str]) -> Path:
        text = (ROOT / "pipeline.yaml").read_text()
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        root = tmp_path / "checkout"
        root.mkdir()
        (root / "pipeline.yaml").write_text(text)
        for name in ("models", "serving", "loadtests/locustfile.py"):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).symlink_to(ROOT / name)
        found = measured.read(files.read_json(ROOT / "k8s/capacity.json"), "k8s/capacity.json")
        for name, content in render(stage.inputs(Context(declaration.load(root)), found)).items():
            files.write_text(root / "k8s" / name, content)
        return root / "k8s"

    return written


def of_kind(objects, kind):
    return [found for found in objects if found["kind"] == kind]


def faults(objects, version):
    """Return what the API of a Kubernetes version says against objects; custom resources are not its."""
    found = []
    for one in objects:
        if one["apiVersion"].split("/")[0] in CUSTOM_GROUPS:
            continue
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{one['kind']} {one['metadata']['name']}: {error.message}")
    return found


@pytest.mark.parametrize("version", NEWEST)
def test_every_overlay_is_valid_for_the_newest_versions_of_kubernetes(built, version):
    for name, objects in built.items():
        assert not faults(objects, version), name


def test_a_misspelt_key_is_found(built):
    (deployment,) = of_kind(built["cpu"], "Deployment")
    broken = yaml.safe_load(yaml.safe_dump(deployment).replace("minReadySeconds", "minReadySecond"))
    assert faults([broken], NEWEST[-1])


def test_custom_resources_are_valid_by_their_published_schemas(tools, built):
    objects = [one for found in built.values() for one in found if one["apiVersion"].split("/")[0] in CUSTOM_GROUPS]
    assert {one["kind"] for one in objects} == {"ScaledObject", "HTTPRoute", "PodMonitor", "PrometheusRule"}
    assert not tools.custom_errors(objects)


def test_a_custom_resource_that_is_wrong_is_found(tools, built):
    (scaled,) = of_kind(built["keda"], "ScaledObject")
    errors = tools.custom_errors([scaled | {"spec": scaled["spec"] | {"maxReplicaCount": "many"}}])
    assert "maxReplicaCount" in errors[0]["error"]


@pytest.fixture(scope="module")
def scanned(tools, built, tmp_path_factory):
    """What the policy scan found in every overlay, and in one that was made worse."""
    folder = tmp_path_factory.mktemp("policy")
    for name, objects in built.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump_all(objects))
    key = "allowPrivilegeEscalation"
    (folder / "worse.yaml").write_text((folder / "cpu.yaml").read_text().replace(f"{key}: false", f"{key}: true"))
    return tools.policy(folder)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_policy_scan_fails_nothing_that_is_not_waived_with_a_reason(scanned, name):
    found = scanned[name]
    assert len(found["passed"]) > 80
    assert [f"{check['check_id']} {check['resource']}" for check in found["failed"]] == []
    assert all(len(check["check_result"]["suppress_comment"]) > 20 for check in found["skipped"])


def test_the_policy_scan_finds_what_was_made_worse(scanned):
    assert [check["check_id"] for check in scanned["worse"]["failed"]] == ["CKV_K8S_20"]


def test_prometheus_accepts_the_rules(built, tmp_path):
    (rule,) = of_kind(built["cpu"], "PrometheusRule")
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(rule["spec"]))
    done = subprocess.run([program("promtool", "prometheus"), "check", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def config_map_of(objects):
    (deployment,) = (one for one in of_kind(objects, "Deployment") if not one["metadata"]["name"].endswith("-canary"))
    (volume,) = (one for one in deployment["spec"]["template"]["spec"]["volumes"] if one["name"] == "config")
    return volume["configMap"]["name"]


def test_a_changed_batching_file_is_another_config_map_and_so_rolls_the_pods(tools, tmp_path):
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    overlay, batching = tmp_path / "k8s/overlays/cpu", tmp_path / "k8s/base/config/batching_parameters.pbtxt"
    before = tools.build(overlay)
    assert config_map_of(before) in {one["metadata"]["name"] for one in of_kind(before, "ConfigMap")}

    batching.write_text(
        batching.read_text().replace("batch_timeout_micros { value: ", "batch_timeout_micros { value: 1")
    )

    after = tools.build(overlay)
    assert config_map_of(after) != config_map_of(before)
    assert config_map_of(after) in {one["metadata"]["name"] for one in of_kind(after, "ConfigMap")}


def test_the_canary_has_a_configuration_of_its_own_with_labels(built):
    assert config_map_of(built["canary"]) != config_map_of(built["cpu"])
    for deployment in of_kind(built["canary"], "Deployment"):
        args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
        assert "--allow_version_labels_for_unavailable_models=true" in args


def test_gpus_are_asked_for_as_at_most_and_the_rest_stays(built):
    (plain,), (gpu,) = (of_kind(built[name], "Deployment") for name in ("cpu", "gpu"))
    plain, gpu = (one["spec"]["template"]["spec"]["containers"][0]["resources"] for one in (plain, gpu))
    assert gpu["requests"]["nvidia.com/gpu"] == gpu["limits"]["nvidia.com/gpu"] == "1"
    assert {**gpu["requests"], "nvidia.com/gpu": "1"} == {**plain["requests"], "nvidia.com/gpu": "1"}


def test_only_one_autoscaler_rules_an_overlay(built):
    for name, objects in built.items():
        if name != "loadtest":
            assert len(of_kind(objects, "HorizontalPodAutoscaler")) + len(of_kind(objects, "ScaledObject")) == 1


def test_models_from_a_bucket_are_read_from_there_and_nothing_is_laid_over_them(tools, variant):
    folder = variant(("kubernetes:\n", "kubernetes:\n  models: {source: bucket, bucket: gs://team/models}\n"))
    objects = tools.build(folder / "overlays/cpu")
    assert not faults(objects, NEWEST[-1])
    (served,) = (
        one["data"]["models.config"] for one in of_kind(objects, "ConfigMap") if "models.config" in one["data"]
    )
    assert 'base_path: "gs://team/models/digits-cnn"' in served and '"/models/' not in served
    (deployment,) = of_kind(objects, "Deployment")
    mounts = deployment["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert not [one for one in mounts if one["mountPath"].startswith("/models")]
    (policy,) = of_kind(objects, "NetworkPolicy")
    assert {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]} == {443, 53, 80}


def test_the_canary_has_its_labels_where_models_are_from_a_bucket_too(tools, variant):
    folder = variant(("kubernetes:\n", "kubernetes:\n  models: {source: bucket, bucket: gs://team/models}\n"))
    objects = tools.build(folder / "overlays/canary")
    (served,) = (
        one["data"]["models.config"] for one in of_kind(objects, "ConfigMap") if "models.config" in one["data"]
    )
    assert 'base_path: "gs://team/models/digits-cnn"' in served and '"/models/' not in served
    assert "version_labels" in served and "canary" in served


def test_models_from_a_claim_and_sysctls_are_valid_together(tools, variant):
    folder = variant(
        ("kubernetes:\n", "kubernetes:\n  models: {source: claim, claim: digits-models}\n  sysctls: true\n")
    )
    objects = tools.build(folder / "overlays/cpu")
    assert not faults(objects, NEWEST[-1])
    pod = of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]
    assert {"name": "net.core.somaxconn", "value": "4096"} in pod["securityContext"]["sysctls"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    (claim,) = (one for one in pod["volumes"] if "persistentVolumeClaim" in one)
    mounts = [one["mountPath"] for one in pod["containers"][0]["volumeMounts"]]
    assert claim["persistentVolumeClaim"] == {"claimName": "digits-models", "readOnly": True}
    assert mounts.count("/models") == 1 and not [path for path in mounts if path.startswith("/models/")]


def test_a_pushed_image_is_named_by_digest_in_every_overlay(tools, variant):
    digest = "sha256:" + "a" * 64
    folder = variant(
        ("kubernetes:\n", f"kubernetes:\n  gpu: {{image: registry.example/gpu@{digest}}}\n"),
    )
    (deployment,) = of_kind(tools.build(folder / "overlays/gpu"), "Deployment")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == f"registry.example/gpu@{digest}"
