"""The image stage with a real engine: built once, tagged by content, described, pushed, refused."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from registry import registry

from launchpad import pipeline
from launchpad.errors import EnvironmentFault
from launchpad.imagefile import Image
from launchpad.release.candidate import Candidate
from launchpad.release.gates import image as gates
from launchpad.release.gates import supply


def test_the_same_inputs_are_the_same_image_and_nothing_is_built_twice(on_empty):
    first = on_empty.invoke("build", check=True).stdout
    image = Image.load(on_empty.layout)
    assert image and f"done: {image.tag}" in first and "COPY models/digits-cnn" in first

    assert f"up to date: {image.tag}" in on_empty.invoke("build", check=True).stdout

    on_empty.layout.image_record.unlink()
    again = on_empty.invoke("build", check=True).stdout
    assert f"done: {image.tag}" in again
    assert Image.load(on_empty.layout) == image


def test_a_changed_flag_costs_no_copy_of_the_models(on_empty):
    on_empty.invoke("build", check=True)
    before = Image.load(on_empty.layout)
    on_empty.edit(("grpc_max_threads: 64", "grpc_max_threads: 65"))
    on_empty.invoke("configure", check=True)

    built = on_empty.invoke("build", check=True).stdout

    after = Image.load(on_empty.layout)
    assert before.tag != after.tag
    steps = re.findall(r"\d+/\d+ (\w+ \S+).*\n(\s+from the cache)?", built)
    cached = {step for step, mark in steps if mark}
    assert {"COPY models/digits-mlp/versions/", "COPY models/digits-cnn/versions/"} <= cached
    assert "COPY serving/config/" not in cached
    assert "--grpc_max_threads=65" in after.holds["flags"]


def test_the_record_says_what_the_image_is_and_holds(on_empty, engine):
    subprocess.run(["git", "init", "--quiet", "."], cwd=on_empty.root, check=True)
    on_empty.invoke("build", check=True)

    image = Image.load(on_empty.layout)
    facts = engine.client.images.get(image.id)
    manifest = on_empty.root / "models/digits-cnn/evidence/1/manifest.json"
    sha = subprocess.check_output(["sha256sum", str(manifest)], text=True).split()[0]
    assert facts.attrs["Size"] == image.size_bytes > 500_000
    assert image.base["id"] == engine.client.images.get(image.base["image"]).id
    assert image.holds["models"]["digits-cnn"] == {"1": sha}
    assert "models.config" in image.holds["config"]
    assert facts.labels["io.tfs-launchpad.models"] == "digits-mlp:1 digits-cnn:1"
    assert f"digits-cnn/1=sha256:{sha}" in facts.labels["io.tfs-launchpad.manifests"]
    assert facts.labels["org.opencontainers.image.revision"] == image.revision
    assert sum("/models/digits" in layer["made_by"] for layer in image.layers) == 3


def test_a_release_wants_the_image_of_what_is_here(on_empty, engine):
    def judged():
        return gates.image(Candidate(pipeline.context(on_empty.root), "1.0.0", on_empty.root, on_empty.root, None))

    assert "none was built here" in judged().gates[0].why
    on_empty.invoke("build", check=True)
    assert judged().verdict == "passed"

    on_empty.edit(("grpc_max_threads: 64", "grpc_max_threads: 65"))
    on_empty.invoke("configure", check=True)
    stale = judged()
    assert stale.verdict == "failed" and "has changed since" in stale.notes[1]

    on_empty.invoke("build", check=True)
    built = Image.load(on_empty.layout)
    assert judged().verdict == "passed"
    engine.client.images.remove(built.tag, force=True)
    gone = judged()
    assert gone.verdict == "failed" and "the engine does not have it" in gone.notes


def test_the_python_parts_of_a_base_image_are_looked_at(on_empty, engine, empty_image, tmp_path):
    """As pip leaves them, and as a distribution's own packages are left: a folder, and of old a file."""
    said = "Metadata-Version: 2.1\nName: {}\nVersion: 1.0\n{}"
    for path, text in (
        ("usr/lib/python3/dist-packages/free-1.0.dist-info/METADATA", said.format("free", "License: MIT\n")),
        ("opt/app/site-packages/bound-1.0.dist-info/METADATA", said.format("bound", "License-Expression: GPL-3.0\n")),
        ("usr/lib/python3/dist-packages/aged-1.0.egg-info", said.format("aged", "")),
    ):
        (tmp_path / "parts" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "parts" / path).write_text(text)
    (tmp_path / "parts" / "Dockerfile").write_text(f"FROM {empty_image}\nCOPY . /\n")
    engine.client.images.build(path=str(tmp_path / "parts"), tag="with-parts:1")

    def judged():
        candidate = Candidate(pipeline.context(on_empty.root), "1.0.0", on_empty.root, on_empty.root, None)
        return supply.licences(candidate)

    on_empty.edit(("backend: embedded", "backend: docker"))
    with pytest.raises(EnvironmentFault, match="no image was built"):
        judged()
    on_empty.invoke("build", check=True)
    without = judged()
    assert without.verdict == "passed" and without.notes == [
        f"0 packages of the image {Image.load(on_empty.layout).tag}"
    ]

    on_empty.edit((f"image: {empty_image}", "image: with-parts:1"))
    on_empty.invoke("build", check=True)
    found = judged()
    assert found.verdict == "failed"
    assert found.notes[:2] == ["aged: no licence named", "bound: GPL-3.0"]
    assert found.facts["licences"] == {"none named": ["aged"], "GPL-3.0": ["bound"], "MIT": ["free"]}
    assert not engine.client.containers.list(all=True, filters={"ancestor": Image.load(on_empty.layout).id})


def test_a_push_is_taken_by_a_registry_and_its_digest_recorded(on_empty):
    with registry() as taken:
        done = on_empty.invoke("build", "--push", taken.address, check=True)

    image = Image.load(on_empty.layout)
    repository, tag = image.tag.split(":")
    assert taken.manifests == {(repository, tag): image.digest}
    assert f"{taken.address}/{repository}@{image.digest}" in done.stdout
    on_empty.invoke("build", "--force", check=True)
    assert Image.load(on_empty.layout).digest == image.digest  # what was pushed holds the same


def test_a_registry_that_does_not_answer_is_told(on_empty):
    done = on_empty.invoke("build", "--push", "127.0.0.1:9")

    assert done.returncode == 3 and "pushing to 127.0.0.1:9" in done.stdout and "Traceback" not in done.stdout


def test_the_printed_command_builds_the_same_image(on_empty, engine):
    printed = on_empty.invoke("build", "--print", check=True).stdout
    on_empty.invoke("build", check=True)
    image = Image.load(on_empty.layout)
    assert f"--tag {image.tag} " in printed

    engine.client.images.remove(image.tag, force=True)
    command = f"DOCKER_BUILDKIT=0 {printed.strip()}"
    subprocess.run(command, shell=True, cwd=on_empty.root, check=True, capture_output=True)

    built = engine.client.images.get(image.tag)
    assert built.labels["io.tfs-launchpad.manifests"]
    assert built.attrs["Config"]["Entrypoint"] == ["/bin/bash", "/opt/launchpad/entrypoint.sh"]


def test_the_context_of_a_build_by_hand_is_what_the_image_needs(on_empty, engine, tmp_path):
    """The .dockerignore lets through what the Dockerfile copies, and not the rest of a checkout."""
    on_empty.invoke("build", check=True)
    (on_empty.root / "tell.Dockerfile").write_text(f"FROM {Image.load(on_empty.layout).base['image']}\nCOPY . /all\n")
    hidden = on_empty.root / "models/digits-cnn/versions/.2.new"
    hidden.mkdir()
    (hidden / "saved_model.pb").write_text("unfinished")
    command = ["docker", "build", "--quiet", "--file", "tell.Dockerfile", "--tag", "tell:1", "."]
    subprocess.run(
        command, cwd=on_empty.root, check=True, capture_output=True, env={**os.environ, "DOCKER_BUILDKIT": "0"}
    )
    container = engine.client.containers.create("tell:1", ["none"])
    archive = tmp_path / "all.tar"
    archive.write_bytes(b"".join(container.get_archive("/all")[0]))
    container.remove()
    names = subprocess.check_output(["tar", "--list", "--file", str(archive)], text=True).splitlines()
    there = {name for name in names if not name.endswith("/")}
    assert {"all/models/digits-cnn/versions/1/saved_model.pb", "all/serving/config/models.config"} <= there
    assert not [name for name in there if "/." in name or "evidence" in name or name.endswith((".py", ".npz"))]


def test_a_base_image_that_cannot_be_had_is_told(on_empty):
    on_empty.edit(("image: tfs-launchpad-empty:1", "image: 127.0.0.1:9/none:1"))

    done = on_empty.invoke("build")

    assert done.returncode == 3
    assert "the base image 127.0.0.1:9/none:1 is not here and cannot be pulled" in done.stdout
    assert "docker load" in done.stdout and not on_empty.layout.image_record.exists()


def test_auto_passes_an_engine_over_that_cannot_have_the_base_image(on_empty):
    on_empty.edit(("image: tfs-launchpad-empty:1", "image: 127.0.0.1:9/none:1"), ("backend: embedded", "backend: auto"))

    done = on_empty.invoke("launch", check=True)

    assert "embedded: docker: the base image 127.0.0.1:9/none:1 is not here and cannot be pulled" in done.stdout
    assert "native: there is no tensorflow_model_server on the PATH" in done.stdout


def test_the_compose_file_is_one(on_empty):
    if shutil.which("docker-compose") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("not run: no docker-compose")
    on_empty.edit(("backend: embedded", "backend: embedded\n  gpu: prefer\n  models: mounted"))
    on_empty.invoke("build", check=True)
    command = ["docker-compose", "--file", "serving/docker-compose.yml", "config"]
    done = subprocess.run(command, cwd=on_empty.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"127.0.0.1:{on_empty.rest_port}:{on_empty.rest_port}/tcp" in done.stdout
    assert "prom/prometheus" in done.stdout and "/models:ro" in done.stdout
