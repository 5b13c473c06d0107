"""`invoke manifests`: renders `k8s/` from the declaration and the capacity result, and tells when it has drifted."""

from __future__ import annotations

from launchpad import console, files, imagefile
from launchpad.errors import DeclarationError, GateFailed, Problem
from launchpad.imagefile import Image
from launchpad.kubernetes import measured
from launchpad.kubernetes.measured import Measured
from launchpad.kubernetes.render import Inputs, ServerImage, render
from launchpad.kubernetes.sizing import Sizing, size
from launchpad.layout import Layout
from launchpad.spec import Pipeline
from launchpad.stage import Context

RENDERED = b"# Rendered from pipeline.yaml"
"""How every rendered file begins that can hold a comment."""


SCALING_TOLERANCE = 1.1
"""So many times its target a measured use has to be before Kubernetes adds a pod, unless the cluster has another."""


def manifests(context: Context) -> None:
    """Write `k8s/` and say what it follows from.

    Raises EnvironmentFault where no fitting capacity was measured, DeclarationError where the demand needs more
    replicas than are declared.
    """
    found, kept = measured.latest(context, context.force)
    sizing = _fitting(context, found)
    texts = render(inputs(context, found))
    layout = context.layout
    changed = [name for name, text in texts.items() if not _is(layout, name, text)]
    gone = _strays(layout, texts)
    files.write_json(layout.kubernetes_capacity, kept)
    for name in changed:
        files.write_text(layout.kubernetes / name, texts[name])
    for name in gone:
        files.remove(layout.kubernetes / name)
    _show(context, found, sizing)
    for reason in found.despite:
        console.say(f"  ! taken with --force: the capacity {reason}", "yellow")
    if found.limited:
        console.say(f"  ! the capacity is a lower bound: above it {found.limited}", "yellow")
    written = f"{len(changed)} of {len(texts)} files written" if changed else f"{len(texts)} files are as they were"
    console.say(f"k8s: {written}" + (f", {len(gone)} removed" if gone else ""))


def check(context: Context) -> str:
    """Return a line that says that the committed manifests are what is declared and measured. Raises GateFailed."""
    texts = render(inputs(context, measured.accepted(context)))
    layout = context.layout
    drifted = [name for name, text in texts.items() if not _is(layout, name, text)]
    problems = [
        Problem("differs from what pipeline.yaml and k8s/capacity.json give", f"k8s/{name}", "run `invoke manifests`")
        for name in drifted
    ] + [Problem("is rendered no more", f"k8s/{name}", "run `invoke manifests`") for name in _strays(layout, texts)]
    if problems:
        raise GateFailed(problems)
    return f"{len(texts)} manifests are what pipeline.yaml and k8s/capacity.json give"


def inputs(context: Context, found: Measured) -> Inputs:
    """Return what the manifests follow from. Raises DeclarationError where pods would find no models in their image."""
    layout, pipeline = context.layout, context.declaration.pipeline
    if pipeline.kubernetes.models.source == "image" and pipeline.serving.models == "mounted":
        raise DeclarationError(
            "kubernetes.models.source: the image holds no models (serving.models is mounted)",
            context.declaration.where("kubernetes", "models", "source"),
            "take them from a claim or a bucket, or declare serving.models: baked",
        )
    return Inputs(
        declaration=context.declaration,
        measured=found,
        image=server_image(layout, pipeline),
        versions=imagefile.versions(layout, pipeline),
        locustfile=layout.locustfile.read_text(encoding="utf-8"),
    )


def server_image(layout: Layout, pipeline: Pipeline) -> ServerImage:
    """Return the image that pods run: by digest where one of what is here was pushed."""
    registry = pipeline.kubernetes.registry
    base = f"tfs-launchpad/{pipeline.name}"
    name = f"{registry.rstrip('/')}/{base}" if registry else base
    content = imagefile.content(layout, pipeline)
    record = Image.load(layout)
    digest, why = None, "No image has been pushed"
    if record and record.digest and record.content != content:
        why = "The pushed image holds something else than what is here"
    elif record and record.digest and not registry:
        why = "kubernetes.registry does not say where the image was pushed"
    elif record and record.digest:
        digest = record.digest
    return ServerImage(name=name, tag=content[:12], digest=digest, why=why, base=base)


def _fitting(context: Context, found: Measured) -> Sizing:
    """Return the sizing. Raises DeclarationError where the declared demand does not fit into the replica limit, and for
    pods that are given less of the processor than what was measured of them took."""
    declared = context.declaration.pipeline.kubernetes
    sizing = size(declared, found)
    most_used = SCALING_TOLERANCE * sizing.cpu_target_percent / 100 * sizing.cpu_request
    if found.cores and sizing.cpu_limit < most_used:
        raise DeclarationError(
            f"pods of {sizing.cpu_limit:g} cores never get to {sizing.cpu_target_percent} % of that, at which another "
            f"is to be started: at its capacity the server used {found.cores:.2f} (run {found.run})",
            context.declaration.where("kubernetes", "resources", "cpu"),
            f"declare {found.cores:.1f} or more, or measure the capacity of a server with so few",
        )
    most = declared.replicas.max
    held = f"a replica works at {sizing.target_rps:,.0f} requests/s"
    for key, needed in (("usual_rps", sizing.replicas_min), ("peak_rps", sizing.peak_replicas or 0)):
        if needed > most:
            raise DeclarationError(
                f"kubernetes.demand.{key}: needs {needed} replicas ({held}), kubernetes.replicas.max is {most}",
                context.declaration.where("kubernetes", "demand", key),
                f"raise kubernetes.replicas.max to {needed} or more, or lower the demand",
            )
    return sizing


def _show(context: Context, found: Measured, sizing: Sizing) -> None:
    peak = f"; {sizing.peak_replicas} for the peak with a zone lost" if sizing.peak_replicas else ""
    rows = [
        ("capacity of a replica", f"{found.capacity_rps:,.0f} requests/s", f"run {found.run}, {found.place}"),
        ("works at", f"{sizing.target_rps:,.0f} requests/s", "kubernetes.autoscaling.headroom"),
        ("CPU", f"{sizing.cpu_request:g} to {sizing.cpu_limit:g} cores", sizing.cpu_origin),
        ("memory", f"{sizing.memory_mib} MiB", sizing.memory_origin),
        ("may load for", f"{sizing.startup_s:.0f} s", f"loading took {found.ready_s:.1f} s"),
        ("replicas", f"{sizing.replicas_min} to {sizing.replicas_max}", f"{sizing.min_origin}{peak}"),
    ]
    console.table("What the manifests follow from", ("", "value", "from"), rows)


def _is(layout: Layout, name: str, text: str) -> bool:
    path = layout.kubernetes / name
    return path.is_file() and path.read_bytes() == text.encode()


def _strays(layout: Layout, texts: dict[str, str]) -> list[str]:
    """Return rendered files that are rendered no more; files of other hands are left alone."""
    return [
        name
        for name in files.tree(layout.kubernetes)
        if name not in texts and (layout.kubernetes / name).read_bytes().startswith(RENDERED)
    ]
