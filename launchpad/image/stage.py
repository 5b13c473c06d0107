"""The build stage: renders what makes the server image, and makes it where the backend runs one or a user asks."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import replace

from launchpad import console, engine, files, flagfile, imagefile
from launchpad.backends import choose
from launchpad.errors import EnvironmentFault, GateFailed, Problem
from launchpad.exclusive import exclusive
from launchpad.image import builder, monitoring, recipe
from launchpad.imagefile import Image
from launchpad.layout import FLAGS_FILE
from launchpad.stage import Context, Outcome, Plan, Stage, Stopwatch


class Build(Stage):
    name = "build"
    summary = "render the files of the image and of its monitoring; build the image where the backend runs one"
    follows = ("export", "configure")

    def plan(self, context: Context) -> list[Plan]:
        drifted = drift(context)
        plans = [Plan("image files", f"not as rendered: {', '.join(drifted)}" if drifted else "")]
        if _wanted(context):
            plans.append(Plan("image", _reason(context)))
        return plans

    def run(self, context: Context) -> Outcome:
        render(context)
        if not _wanted(context):
            choice = choose(context)
            return Outcome("skipped", f"the {choice.backend.name} backend runs without an image ({choice.why})")
        return make(context)

    def check(self, context: Context) -> Outcome:
        """Compare the committed files with what the declaration gives. Raises GateFailed on drift."""
        drifted = drift(context)
        if drifted:
            raise GateFailed(
                [Problem("differs from what pipeline.yaml gives", name, "run `invoke build`") for name in drifted]
            )
        return Outcome(
            "up to date", f"{len(rendered(context))} files of the image and its monitoring are what pipeline.yaml gives"
        )


def render(context: Context) -> None:
    """Write those of the image's files that differ from what the declaration gives."""
    for name in drift(context):
        files.write_text(context.layout.root / name, rendered(context)[name])


def make(context: Context) -> Outcome:
    """Build the image, or keep it where it is up to date. Raises EnvironmentFault."""
    layout, pipeline = context.layout, context.declaration.pipeline
    reason = _reason(context)
    if not reason and (image := Image.load(layout)):
        return Outcome("up to date", _line(image), (layout.image_record,))
    _refuse_incomplete(context)
    clock = Stopwatch()
    client = engine.connect()
    base = builder.base_image(client, pipeline.serving.image)
    earlier = Image.load(layout)
    image = builder.build(client, layout, pipeline, base)
    if earlier and (earlier.content, earlier.base["id"]) == (image.content, image.base["id"]):
        image = replace(image, digest=earlier.digest)  # what was pushed holds the same
    image.save(layout)
    return Outcome("done", f"{_line(image)}, in {clock.seconds:.1f} s", (layout.image_record,))


def push(context: Context, registry: str) -> str:
    """Push the image of what is here, built if need be; return its name with the digest. Raises EnvironmentFault."""
    with exclusive(context.layout.lock):
        render(context)
        console.say(f"  {make(context).detail}")
        image = Image.load(context.layout)
        if image is None:
            raise EnvironmentFault("the image's record is gone", "serving/image.json", "run `invoke build`")
        name, digest = builder.push(engine.connect(), image, registry)
        replace(image, digest=digest).save(context.layout)
    return f"{name.rpartition(':')[0]}@{digest}" if digest else name


def command(context: Context) -> str:
    """Return the docker command that builds the same image of the files, which are rendered for it.

    Asks an engine for the base image, if one answers: the tag names it too.
    """
    render(context)
    layout, pipeline = context.layout, context.declaration.pipeline
    base = None
    if engine.obstacle() is None:
        with contextlib.suppress(EnvironmentFault):
            base = engine.local_image(engine.connect(), pipeline.serving.image)
    tag = builder.tag_of(layout, pipeline, base["Id"] if base else "")
    return shlex.join(builder.build_command(tag, builder.build_arguments(layout, pipeline)))


def rendered(context: Context) -> dict[str, str]:
    """Return the image's files as the declaration and the exported versions give them, by path below the checkout."""
    layout, pipeline = context.layout, context.declaration.pipeline
    flags_file = layout.serving_config / FLAGS_FILE
    files = recipe.render(
        pipeline,
        flagfile.read(flags_file) if flags_file.exists() else [],
        imagefile.versions(layout, pipeline),
        imagefile.own_batching(layout, pipeline),
    )
    return {**files, **monitoring.render(context.declaration)}


def drift(context: Context) -> list[str]:
    """Return the paths of the image's files that are not there or differ."""
    root = context.layout.root
    return [
        name
        for name, text in rendered(context).items()
        if not (root / name).is_file() or (root / name).read_bytes() != text.encode()
    ]


def _wanted(context: Context) -> bool:
    """Tell whether an image is to be made: `invoke build` by itself asks for it, a chain where its backend runs it."""
    return context.alone or choose(context).backend.name == "docker"


def _reason(context: Context) -> str:
    """Return why the image has to be built; empty when the one of what is here is there."""
    layout, pipeline = context.layout, context.declaration.pipeline
    if context.force:
        return "forced"
    image = Image.load(layout)
    if image is None:
        return "never built"
    if image.content != imagefile.content(layout, pipeline):
        return "what it holds has changed"
    client = engine.connect()
    if engine.local_image(client, image.id) is None:
        return f"the engine has no {image.tag}"
    base = engine.local_image(client, pipeline.serving.image)
    return "the base image has changed" if base and base["Id"] != image.base["id"] else ""


def _refuse_incomplete(context: Context) -> None:
    """Raise EnvironmentFault where something that the image holds has not been made."""
    layout, pipeline = context.layout, context.declaration.pipeline
    if not (layout.serving_config / FLAGS_FILE).exists():
        raise EnvironmentFault("there is no rendered configuration", "serving/config", "run `invoke configure`")
    for name, versions in imagefile.versions(layout, pipeline).items():
        if not versions:
            raise EnvironmentFault(f"{name} has no exported version", "models", "run `invoke export`")


def _line(image: Image) -> str:
    return f"{image.tag}, {image.size_bytes / 1e6:,.0f} MB"
