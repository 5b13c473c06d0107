"""The image's files: what of the declaration they follow, and that Docker's own linter has nothing to say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launchpad.declaration import load
from launchpad.image import monitoring, recipe
from tests.conftest import MINIMAL

FLAGS = ["--port=8500", "--per_process_gpu_memory_fraction=0.4"]
HADOLINT = Path(sys.executable).with_name("hadolint")


def render(pipeline, **changes):
    arguments = {"flags": FLAGS, "versions": {"tiny": [1, 2]}, "own_batching": []} | changes
    return recipe.render(pipeline, **arguments)


@pytest.fixture
def pipeline(declare):
    def declared(serving: str = ""):
        return declare(MINIMAL + (f"serving:\n{serving}" if serving else "")).pipeline

    return declared


def test_the_base_image_is_the_declared_one(pipeline):
    text = render(pipeline("  image: tensorflow/serving:2.20.0-gpu\n"))["serving/Dockerfile"]
    assert "\nFROM tensorflow/serving:2.20.0-gpu\n" in text


def test_nothing_runs_while_it_builds_and_the_server_is_nobody(pipeline):
    lines = render(pipeline())["serving/Dockerfile"].splitlines()
    assert not [line for line in lines if line.startswith("RUN")]
    assert "USER 65532:65532" in lines


def test_the_flags_are_the_command(pipeline):
    assert 'CMD ["--port=8500", \\\n     "--per_process_gpu_memory_fraction=0.4"]\n' in dockerfile(pipeline())


def dockerfile(pipeline, **changes):
    return render(pipeline, **changes)["serving/Dockerfile"]


def test_every_version_is_given_its_models_own_batching_parameters(pipeline):
    text = dockerfile(pipeline(), own_batching=["tiny"])
    for version in (1, 2):
        assert f"COPY serving/config/tiny/batching_params.pbtxt /models/tiny/{version}/\n" in text
    assert (
        text.index("COPY models/tiny/versions/") < text.index("batching_params") < text.index("COPY serving/config/ ")
    )


def test_mounted_models_are_not_in_the_image(pipeline):
    files = render(pipeline("  models: mounted\n"), own_batching=["tiny"])
    assert "COPY models" not in files["serving/Dockerfile"] and "!models" not in files[".dockerignore"]
    assert "batching_params" not in files["serving/Dockerfile"]
    server = yaml.safe_load(files["serving/docker-compose.yml"])["services"]["model-server"]
    assert server["volumes"] == ["../.launchpad/deployment/models:/models:ro"]


def test_the_health_check_asks_for_every_model_and_waits_as_long_as_the_launch_does(pipeline):
    text = dockerfile(pipeline("  ready_timeout_s: 90\n  ports: {rest: 0, grpc: 9000}\n"))
    assert "--start-period=90s" in text
    assert 'CMD ["/bin/bash", "/opt/launchpad/healthcheck.sh", "0", "9000", "tiny"]' in text
    assert "\nEXPOSE 9000\n" in text


def test_the_compose_file_grants_what_the_docker_backend_grants(pipeline):
    declared = pipeline(
        "  image: tensorflow/serving:2.20.0-gpu\n  gpu: require\n  container: {memory: 2g, cpus: 1.5, "
        "restart: unless-stopped, sysctls: {net.core.somaxconn: 1024}}\n"
    )
    services = yaml.safe_load(render(declared)["serving/docker-compose.yml"])["services"]
    server = services["model-server"]
    assert server["read_only"] and server["cap_drop"] == ["ALL"]
    assert server["ports"] == ["127.0.0.1:8501:8501", "127.0.0.1:8500:8500"]
    assert (server["mem_limit"], server["memswap_limit"], server["cpus"]) == ("2g", "2g", 1.5)
    assert server["sysctls"] == {"net.core.somaxconn": "1024"} and server["restart"] == "unless-stopped"
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert services["prometheus"]["image"].count(":") == 1


@pytest.mark.parametrize("serving", ["  monitoring: {enabled: false}\n", "  ports: {rest: 0, grpc: 8500}\n"])
def test_without_a_metrics_page_nothing_watches_it(declare, serving):
    declared = declare(f"{MINIMAL}serving:\n{serving}")
    assert not monitoring.render(declared)
    files = render(declared.pipeline)
    assert list(yaml.safe_load(files["serving/docker-compose.yml"])["services"]) == ["model-server"]


def test_prometheus_scrapes_the_declared_path(declare):
    files = monitoring.render(
        declare(f"{MINIMAL}serving:\n  ports: {{rest: 9001, grpc: 9000}}\n  monitoring: {{path: /m}}\n")
    )
    for name, target in (("prometheus.yml", "model-server:9001"), ("prometheus.local.yml", "127.0.0.1:9001")):
        (job,) = yaml.safe_load(files[f"serving/monitoring/{name}"])["scrape_configs"]
        assert (job["metrics_path"], job["static_configs"]) == ("/m", [{"targets": [target]}])


def test_the_compose_file_mounts_only_what_is_rendered(declare):
    declared = declare()
    services = yaml.safe_load(render(declared.pipeline)["serving/docker-compose.yml"])["services"]
    mounted = [volume.split(":")[0] for name in ("prometheus", "grafana") for volume in services[name]["volumes"]]
    rendered = monitoring.render(declared)
    for path in mounted:
        place = f"serving/{path.removeprefix('./')}"
        assert place in rendered or place == monitoring.FOLDER


def test_hadolint_passes(repository, tmp_path, pipeline):
    rendered = tmp_path / "Dockerfile"
    rendered.write_text(dockerfile(pipeline("  image: tensorflow/serving:2.20.0-gpu\n"), own_batching=["tiny"]))
    for path in (repository / "serving" / "Dockerfile", rendered):
        done = subprocess.run([str(HADOLINT), str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["entrypoint.sh", "healthcheck.sh"])
def test_the_scripts_need_bash_alone(repository, script):
    """No program of the base image: the one for CPUs has few, a stripped one fewer."""
    if shutil.which("bash") is None:
        pytest.skip("not run: no bash")
    path = repository / "serving" / script
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0
    words = set(re.findall(r"^\s*(\w+)", path.read_text(), re.MULTILINE))
    assert not words & {"curl", "wget", "python", "grep", "cat", "sleep", "sed", "timeout", "nc"}


def test_the_committed_files_are_what_the_declaration_gives(repository):
    from launchpad.image.stage import drift
    from launchpad.stage import Context

    assert not drift(Context(load(repository)))
