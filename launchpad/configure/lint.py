"""Faults of a configuration that the server would not report, or only in production. Pure: facts in, warnings out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from launchpad.batching import Effective
from launchpad.modelserver.flags import FLAGS
from launchpad.spec import Pipeline
from launchpad.versions import newer

NEVER_REFUSES = 10_000
"""Enqueued batches from which on a queue is as good as endless: the delay at its end passes any client's patience."""


@dataclass(frozen=True)
class Finding:
    """A fault at a key of the declaration, and what to do about it."""

    key: tuple[str, ...]
    what: str
    fix: str


def lint(pipeline: Pipeline, batching: Effective, exporters: Mapping[str, str]) -> list[Finding]:
    """Return what is doubtful. `exporters`: the TensorFlow version that exported each model, where it is known."""
    return [
        *_threads(pipeline),
        *_parallelism(pipeline),
        *_queues(pipeline, batching),
        *_exporters(pipeline, exporters),
        *_image(pipeline),
        *_metrics(pipeline),
        *_embedded(pipeline),
    ]


def _threads(pipeline: Pipeline) -> Iterator[Finding]:
    in_flight = max(profile.in_flight for profile in pipeline.loadtest.profiles.values())
    for flag, port, consequence in (
        ("rest_api_num_threads", pipeline.serving.ports.rest, "the others wait outside the batch queue"),
        ("grpc_max_threads", pipeline.serving.ports.grpc, "the others are refused with RESOURCE_EXHAUSTED"),
    ):
        threads = pipeline.serving.flags.get(flag, FLAGS[flag].default)
        if port and isinstance(threads, int) and threads < in_flight:
            default = "" if flag in pipeline.serving.flags else " by default on this machine"
            yield Finding(
                ("serving", "flags", flag),
                f"{flag} is {threads}{default}, the load tests keep {in_flight} requests in flight: {consequence}",
                f"set {flag} to {in_flight} or more; a request holds its thread while it waits for its batch",
            )


def _parallelism(pipeline: Pipeline) -> Iterator[Finding]:
    """Of all three flags the server makes a failed start, of two it ignores the one for both kinds."""
    flags = pipeline.serving.flags
    session, *own = (f"tensorflow_{kind}_parallelism" for kind in ("session", "intra_op", "inter_op"))
    if flags.get(session) and any(map(flags.get, own)):
        consequence = "the server does not start" if all(map(flags.get, own)) else f"the server ignores {session}"
        yield Finding(
            ("serving", "flags", session),
            f"{session} stands beside a flag for one kind of parallelism: {consequence}",
            f"drop it, or {' and '.join(own)}",
        )


def _queues(pipeline: Pipeline, batching: Effective) -> Iterator[Finding]:
    objective = pipeline.objectives.p99_ms
    for name, queue in batching.queues.items():
        own = pipeline.models[name].batching is not None
        place = ("models", name, "batching") if own else ("serving", "batching")
        if queue and queue.max_enqueued_batches >= NEVER_REFUSES:
            yield Finding(
                (*place, "max_enqueued_batches"),
                f"the queue of {name} never refuses: under overload its latency grows without bound",
                "bound it: batches that can be served within the latency objective, such as 100",
            )
        if queue and objective and queue.batch_timeout_micros >= objective * 1000:
            yield Finding(
                (*place, "batch_timeout_micros"),
                f"a lone request to {name} waits {queue.batch_timeout_micros / 1000:g} ms for its batch, "
                f"the objective for p99 is {objective:g} ms",
                "make it a small part of the objective",
            )


def _exporters(pipeline: Pipeline, exporters: Mapping[str, str]) -> Iterator[Finding]:
    for name, exporter in exporters.items():
        if newer(exporter, _tag(pipeline.serving.image)):
            yield Finding(
                ("serving", "image"),
                f"{name} was exported with TensorFlow {exporter}, newer than the server image {pipeline.serving.image}",
                "export with the server's minor version or an older one, or take a newer image",
            )


def _tag(image: str) -> str:
    """Return the tag of an image; a colon before the last slash belongs to the registry's port."""
    return image.rpartition("/")[2].partition(":")[2]


def _image(pipeline: Pipeline) -> Iterator[Finding]:
    image = pipeline.serving.image
    tag = _tag(image)
    if "@sha256:" not in image and (not tag or tag.startswith("latest")):
        yield Finding(
            ("serving", "image"), f"{image} names no release: it changes under you", "pin a version or a digest"
        )


def _metrics(pipeline: Pipeline) -> Iterator[Finding]:
    if pipeline.serving.monitoring.enabled and not pipeline.serving.ports.rest:
        yield Finding(
            ("serving", "monitoring"), "the metrics page needs the REST port, which is off", "give serving.ports.rest"
        )


def _embedded(pipeline: Pipeline) -> Iterator[Finding]:
    if pipeline.serving.backend == "embedded":
        for name in pipeline.serving.flags:
            if not FLAGS[name].supported:
                yield Finding(
                    ("serving", "flags", name), f"the embedded server knows {name} and does not act on it", "drop it"
                )
