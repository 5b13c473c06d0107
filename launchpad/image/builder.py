"""An image built, pushed and described through the Docker SDK, with what the engine says of its progress."""

from __future__ import annotations

import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from launchpad import console, engine, files, flagfile, imagefile
from launchpad.errors import EnvironmentFault
from launchpad.imagefile import Image
from launchpad.layout import FLAGS_FILE, Layout
from launchpad.spec import Pipeline

if TYPE_CHECKING:
    from docker import DockerClient

DOCKERFILE = "serving/Dockerfile"
BUILD_TIMEOUT_S = 1800.0

Events = Iterator[dict[str, Any]]


def base_image(client: DockerClient, name: str) -> dict[str, Any]:
    """Return what the engine knows of the base image, pulled if it is not here. Raises EnvironmentFault."""
    found = engine.local_image(client, name)
    if found is not None:
        return found
    repository, tag = _split(name)
    try:
        with engine.told(f"pulling {name}"), console.progress(f"build: pulling {name}") as advance:
            _watch(f"pulling {name}", client.api.pull(repository, tag=tag, stream=True, decode=True), _layers(advance))
    except EnvironmentFault as fault:
        (problem,) = fault.problems
        if problem.fix:
            raise
        raise EnvironmentFault(
            f"the base image {name} is not here and cannot be pulled: {problem.what}",
            fix=f"`docker pull {name}` or `docker load` it, or declare another serving.image",
        ) from None
    found = engine.local_image(client, name)
    if found is None:
        raise EnvironmentFault(f"the base image {name} was pulled and is not here", fix="pull it by hand, and see")
    return found


def build(client: DockerClient, layout: Layout, pipeline: Pipeline, base: Mapping[str, Any]) -> Image:
    """Build the image of what is in the checkout; return its record. Raises EnvironmentFault."""
    tag = tag_of(layout, pipeline, base["Id"])
    with (
        context_archive(imagefile.sources(layout, pipeline)) as archive,
        engine.told(f"building {tag}"),
        console.progress(f"build: {tag}") as advance,
    ):
        events = client.api.build(
            fileobj=archive,
            custom_context=True,
            dockerfile=DOCKERFILE,
            tag=tag,
            buildargs=build_arguments(layout, pipeline),
            rm=True,
            forcerm=True,
            decode=True,
            timeout=BUILD_TIMEOUT_S,
        )
        _watch(f"building {tag}", events, _steps(advance))
    return describe(client, layout, pipeline, tag, base)


def push(client: DockerClient, image: Image, registry: str) -> tuple[str, str | None]:
    """Tag an image for a registry and push it; return its name and digest there. Raises EnvironmentFault."""
    repository, tag = _split(f"{registry.rstrip('/')}/{image.tag}")
    digest = None

    def note(event: dict[str, Any], seen: Callable[[dict[str, Any]], None]) -> None:
        nonlocal digest
        digest = (event.get("aux") or {}).get("Digest", digest)
        seen(event)

    with engine.told(f"pushing to {registry}"), console.progress(f"build: pushing to {registry}") as advance:
        client.api.tag(image.id, repository, tag)
        shown = _layers(advance)
        events = client.api.push(repository, tag=tag, stream=True, decode=True)
        _watch(f"pushing to {registry}", events, lambda event: note(event, shown))
    return f"{repository}:{tag}", digest


def describe(
    client: DockerClient, layout: Layout, pipeline: Pipeline, tag: str, base: Mapping[str, Any], digest: str = ""
) -> Image:
    """Return the record of a built image, as the engine has it."""
    with engine.told(f"describing {tag}"):
        facts = client.images.get(tag)
        history = facts.history()
    layers = [
        {"made_by": re.sub(r"\s+", " ", layer["CreatedBy"])[:200], "size_bytes": layer["Size"]}
        for layer in reversed(history)
    ]
    return Image(
        tag=tag,
        id=facts.id,
        digest=digest or None,
        size_bytes=facts.attrs["Size"],
        content=imagefile.content(layout, pipeline),
        base={"image": pipeline.serving.image, "id": base["Id"], "digest": (base.get("RepoDigests") or [None])[0]},
        layers=layers,
        holds={
            "models": _manifests(layout, pipeline) if pipeline.serving.models == "baked" else "mounted",
            "config": files.tree(layout.serving_config),
            "flags": flagfile.read(layout.serving_config / FLAGS_FILE),
        },
        revision=facts.labels.get("org.opencontainers.image.revision", ""),
    )


def tag_of(layout: Layout, pipeline: Pipeline, base_id: str) -> str:
    """Return the tag of an image by its content and its base: the same inputs, the same tag."""
    return f"tfs-launchpad/{pipeline.name}:{files.digest([imagefile.content(layout, pipeline), base_id])[:12]}"


def build_arguments(layout: Layout, pipeline: Pipeline) -> dict[str, str]:
    """Return what the labels say and no file does: the manifests' hashes and the source revision."""
    manifests = [
        f"{name}/{version}=sha256:{sha}"
        for name, versions in _manifests(layout, pipeline).items()
        for version, sha in versions.items()
    ]
    return {"MANIFESTS": " ".join(manifests) or "none", "REVISION": revision(layout.root)}


def build_command(tag: str, arguments: Mapping[str, str]) -> list[str]:
    """Return the docker command that builds the same image."""
    given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    return ["docker", "build", "--file", DOCKERFILE, "--tag", tag, *given, "."]


def revision(root: Path) -> str:
    """Return the commit that is checked out, marked where tracked files differ from it; `unknown` outside of git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


@contextmanager
def context_archive(sources: Mapping[str, Path]) -> Iterator[BinaryIO]:
    """Give the build context as a tar file: names, bytes and nothing else, so that equal contents are equal layers.

    Every file can be read by everyone: the server's user owns none of them.
    """
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, path in sorted(sources.items()):
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = path.stat().st_size, 0o644
                with path.open("rb") as file:
                    tar.addfile(entry, file)
        archive.seek(0)
        yield archive


def _manifests(layout: Layout, pipeline: Pipeline) -> dict[str, dict[str, str]]:
    """Return {model: {version: SHA-256 of its manifest}}; empty for a version without one."""
    found: dict[str, dict[str, str]] = {}
    for name, versions in imagefile.versions(layout, pipeline).items():
        paths = {str(version): layout.evidence(name, version) / "manifest.json" for version in versions}
        found[name] = {version: files.sha256(path) if path.exists() else "" for version, path in paths.items()}
    return found


def _watch(doing: str, events: Events, seen: Callable[[dict[str, Any]], None]) -> None:
    """Follow the engine's events to their end. Raises EnvironmentFault for the first that says an error."""
    for event in events:
        if "error" in event:
            raise EnvironmentFault([engine.explain(event["error"], doing)])
        seen(event)


def _steps(advance: console.Advance) -> Callable[[dict[str, Any]], None]:
    """Return what shows a build's steps as they come."""

    def seen(event: dict[str, Any]) -> None:
        if found := re.match(r"Step (\d+)/(\d+) : (.*)", event.get("stream", "")):
            advance(int(found[1]), int(found[2]))
            console.say(f"  {found[1]}/{found[2]} {found[3][:100]}", "dim")
        elif "Using cache" in event.get("stream", ""):
            console.say("      from the cache", "dim")

    return seen


def _layers(advance: console.Advance) -> Callable[[dict[str, Any]], None]:
    """Return what shows the progress of a pull or a push, over all layers."""
    layers: dict[str, tuple[int, int]] = {}

    def seen(event: dict[str, Any]) -> None:
        detail = event.get("progressDetail") or {}
        if "id" in event and detail.get("total"):
            layers[event["id"]] = (detail.get("current", 0), detail["total"])
            advance(sum(done for done, _ in layers.values()), sum(total for _, total in layers.values()))

    return seen


def _split(name: str) -> tuple[str, str | None]:
    """Return repository and tag of an image's name; a colon before the last slash belongs to the registry's port."""
    if "@" in name:
        return name, None
    head, slash, tail = name.rpartition("/")
    repository, _, tag = tail.partition(":")
    return f"{head}{slash}{repository}", tag or "latest"
