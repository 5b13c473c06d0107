"""Gate on going back: a rehearsal under load of what a person does in the night, with no request lost.

Each model is taken back to the previous release's version and forth again, its labels move from canary to stable and
back, and a version that cannot be loaded is published beside the good one. All the while the release profile's traffic
arrives at half the rate that the server took, and requests by label are asked for as long as the label is there. The
load is evidence of the release alone, no run: what it measures is the going back, not the server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launchpad import console, exported, files
from launchpad.backends import how_ended
from launchpad.client import RestClient, ServerError
from launchpad.gates import Gate
from launchpad.layout import Layout
from launchpad.loadtest import generator, summary
from launchpad.publishing import NotLoaded, Publisher
from launchpad.release.candidate import Candidate, Finding, not_run
from launchpad.release.gates.models import content
from launchpad.runfolder import HISTORY, read_failures
from launchpad.server import Server
from launchpad.spec import OpenLoop, Traffic

HOLD_S = 2.0
"""How long each state is held under load."""
SHARE = 0.5
LEAST_RPS = 20.0
LIMIT_S = 600.0
ASK_EVERY_S = 0.02
WRONG = "wrong answer"
EXAMPLES = 50
LOAD = "rehearsal"
"""Folder of the load's own files, beside the checklist."""
REPORTED_S = 2
"""A second is reported as late as in the one after it, and a request may be answered as late again."""


@dataclass(frozen=True)
class Earlier:
    """What a model is taken back to. source: a version folder; None for the version that is served.

    note: which it is. gone: why there is nothing to go back to; empty where there is.
    """

    note: str
    source: Path | None = None
    gone: str = ""


@dataclass
class Step:
    """Something that was done to the running server, and what was seen. `held` is whether it went as it must."""

    model: str
    what: str
    seen: str
    held: bool
    at_s: float


@dataclass
class Rehearsal:
    """What was done, and the requests by label that were asked meanwhile.

    second: the newest one that the load has reported. back: {model: first and last second in which the version that it
    was taken back to may have answered}, of models whose weights are then others.
    """

    steps: list[Step] = field(default_factory=list)
    asked: int = 0
    failures: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)
    second: int = 0
    back: dict[str, tuple[int, int]] = field(default_factory=dict)

    def saw(self, model: str, what: str, seen: str, held: bool) -> None:
        self.steps.append(Step(model, what, seen, held, round(time.monotonic() - self.start, 1)))


def rollback(candidate: Candidate) -> Finding:
    """Publish the previous version and return, move labels and move them back, meet a broken version: nothing fails."""
    earlier = {name: _previous(candidate, name) for name in candidate.pipeline.models}
    if gone := [found.gone for found in earlier.values() if found.gone]:
        return not_run("failed requests", "; ".join(gone))
    publisher = Publisher(candidate.context.declaration)
    folder, published_folder = candidate.keep(LOAD)
    rehearsal, ending, measured = _under_load(candidate, publisher, earlier, folder)
    missed = [f"{step.model}: {step.what}: {step.seen}" for step in rehearsal.steps if not step.held]
    traffic = candidate.pipeline.traffic(candidate.pipeline.loadtest.profiles[candidate.profile])
    lost, of_earlier = lost_requests(read_failures(folder), traffic, rehearsal.back)
    lost += len(rehearsal.failures)
    written, published = candidate.keep("rehearsal.json")
    document = {
        "steps": [asdict(step) for step in rehearsal.steps],
        "requests by label": rehearsal.asked,
        "failures by label": rehearsal.failures,
        "answers of earlier weights": of_earlier,
        "errors": measured["errors"],
        "totals": measured["totals"],
    }
    files.write_json(written, document)
    sent = measured["totals"]["requests"] + rehearsal.asked
    why = ending.why or "no request was sent"
    whole = ending.status == "completed" and measured["totals"]["requests"] > 0 and rehearsal.asked > 0
    gates = [
        Gate("steps that did not go as they must", len(missed), "<=", 0),
        Gate("failed requests", float(lost) if whole else None, "<=", 0, why=why),
    ]
    notes = [
        *missed,
        *rehearsal.failures[:3],
        f"{sent:,} requests, of them {rehearsal.asked:,} by label, in {len(rehearsal.steps)} steps",
        *(found.note for found in earlier.values()),
        *(f"{model}: {count:,} answers were those of the earlier weights" for model, count in of_earlier.items()),
    ]
    return Finding(gates, [published, published_folder / HISTORY], notes)


def lost_requests(
    failures: Iterable[Mapping[str, Any]], traffic: Iterable[Traffic], back: Mapping[str, tuple[int, int]]
) -> tuple[int, dict[str, int]]:
    """Return how many requests were lost, and how many answers of each model were those of its earlier weights.

    An answer that is not the candidate's is the earlier version's while that may answer, and wrong at any other time.
    failures: rows of `errors.csv`. back: {model: first and last second of the earlier version}.
    """
    models = {line.line: line.model for line in traffic}
    lost, of_earlier = 0, dict.fromkeys(back, 0)
    for row in failures:
        model = models[row["line"]]
        first, last = back.get(model, (0, -1))
        if row["kind"] == WRONG and first <= row["second"] <= last:
            of_earlier[model] += row["count"]
        else:
            lost += row["count"]
    return lost, of_earlier


def rehearse(candidate: Candidate, publisher: Publisher, earlier: Mapping[str, Earlier], rehearsal: Rehearsal) -> None:
    """Do it, model by model, and leave the server as it was. Raises EnvironmentFault, GateFailed or ServerError."""
    for model, found in earlier.items():
        before, labels = publisher.served(model), publisher.labels(model)
        try:
            _go_back(publisher, rehearsal, model, found.source)
            _move_labels(candidate, publisher, rehearsal, model)
            _meet_broken(candidate, publisher, rehearsal, model)
        finally:
            _restore(publisher, model, before, labels)


def _go_back(publisher: Publisher, rehearsal: Rehearsal, model: str, source: Path | None) -> None:
    """Publish the previous version under the next number, and withdraw it."""
    good, first = publisher.served(model), rehearsal.second
    back = publisher.publish(model, source=source, why="rollback rehearsal")
    serves = publisher.served(model)
    rehearsal.saw(
        model, f"published the previous version as {back.version}", f"serves {serves}", serves == back.version
    )
    time.sleep(HOLD_S)
    publisher.withdraw(model, back.version)
    if source:
        rehearsal.back[model] = (first, rehearsal.second + REPORTED_S)
    serves = publisher.served(model)
    rehearsal.saw(model, f"withdrew {back.version}", f"serves {serves}", serves == good)
    time.sleep(HOLD_S)


def _move_labels(candidate: Candidate, publisher: Publisher, rehearsal: Rehearsal, model: str) -> None:
    """Serve two versions, one as canary; make it stable; go back. Each label is asked for while it is there."""
    good = publisher.served(model)
    new = publisher.publish(model, why="canary rehearsal").version
    publisher.serve(model, [good, new])
    for what, labels in (
        ("a canary beside the stable version", {"stable": good, "canary": new}),
        ("the canary is stable", {"stable": new, "canary": new}),
        ("back to the stable version", {"stable": good, "canary": new}),
    ):
        publisher.label(model, labels)
        with _asking(candidate, publisher.server, rehearsal, model, labels):
            time.sleep(HOLD_S)
            seen = {label: _behind(publisher.server, model, label) for label in labels}
        rehearsal.saw(model, what, f"labels lead to {seen}", seen == labels)
    publisher.label(model, {})
    publisher.serve(model, [good])
    publisher.withdraw(model, new)
    serves = publisher.served(model)
    rehearsal.saw(model, "withdrew the canary", f"serves {serves}", serves == good)


def _meet_broken(candidate: Candidate, publisher: Publisher, rehearsal: Rehearsal, model: str) -> None:
    """Publish a version that cannot be loaded beside the good one."""
    good = publisher.served(model)
    with _broken(candidate.layout, model, good) as source:
        try:
            loaded = publisher.publish(model, source=source, why="broken version rehearsal")
            seen, held = f"version {loaded.version} was loaded", False
        except NotLoaded as error:
            seen, held = error.problems[0].what, publisher.served(model) == good
    rehearsal.saw(model, "published a version that cannot be loaded", seen, held)
    time.sleep(HOLD_S)


@contextmanager
def _broken(layout: Layout, model: str, version: int) -> Iterator[Path]:
    """A copy of a version whose graph is cut off in the middle; named by a number, as its publisher wants it."""
    folder = layout.private / "broken" / str(version)
    try:
        files.copy_tree(layout.deployed(model) / str(version), folder, link=True)
        graph = folder / "saved_model.pb"
        content = graph.read_bytes()
        graph.unlink()  # a link: written through, it would break the good one
        graph.write_bytes(content[: len(content) // 2])
        yield folder
    finally:
        files.remove(folder.parent)


def _restore(publisher: Publisher, model: str, before: int, labels: Mapping[str, int]) -> None:
    """Leave the server as it was, whatever the rehearsal came to."""
    if how_ended(publisher.server):
        return
    for version in publisher.versions(model):
        if version > before:
            publisher.withdraw(model, version)
    publisher.serve(model, None)
    publisher.label(model, labels)


def _previous(candidate: Candidate, model: str) -> Earlier:
    """Return what the previous release served, as it was released; the candidate's own version where there is none."""
    now = candidate.pipeline.models[model].version
    before = (candidate.previous or {"models": {}})["models"].get(model)
    if candidate.previous is None or before is None:
        return Earlier(f"{model}: no release before; rehearsed with the candidate's own version {now}")
    version, release = before["version"], candidate.previous["version"]
    if content(candidate.layout, model, version) != before["content"]:
        return Earlier("", gone=f"{model} version {version} is not here as release {release} had it")
    if version == now:
        return Earlier(f"{model}: release {release} has version {version} too; rehearsed with it")
    folder = candidate.layout.version(model, version)
    return Earlier(f"{model}: back to version {version} of release {release}", folder)


def _under_load(
    candidate: Candidate, publisher: Publisher, earlier: Mapping[str, Earlier], folder: Path
) -> tuple[Rehearsal, generator.Ending, dict[str, Any]]:
    """Rehearse while traffic arrives at random times; return what came of it, and of the traffic, kept in `folder`."""
    pipeline = candidate.pipeline
    traffic = pipeline.traffic(pipeline.loadtest.profiles[candidate.profile])
    took = candidate.measured["totals"]["throughput_rps"] if candidate.measured else 0.0
    rate = max(LEAST_RPS, SHARE * took)
    profile = OpenLoop(loop="open", rate_rps=rate, duration_s=LIMIT_S, traffic=traffic)
    folder.mkdir(parents=True)
    rehearsal, ending, trouble = Rehearsal(), generator.Ending(), list[BaseException]()
    over = threading.Event()

    def act() -> None:
        try:
            rehearse(candidate, publisher, earlier, rehearsal)
        except BaseException as error:
            trouble.append(error)
        finally:
            over.set()

    thread = threading.Thread(target=act, name="rehearsal")

    def observe(part: dict[str, Any]) -> bool:
        rehearsal.second = part["second"]
        if thread.ident is None:  # not before there is load
            rehearsal.start = time.monotonic()
            thread.start()
        return not over.is_set()

    try:
        with console.progress(f"rollback rehearsal at {rate:,.0f} requests/s"):
            generator.drive(candidate.layout, lambda: how_ended(publisher.server), profile, 1, folder, ending, observe)
    finally:
        if thread.ident is not None:
            thread.join()
    if trouble:
        raise trouble[0]
    measured = summary.of_folder(folder, {line.line: line.model for line in traffic}, ending.measured_s)
    return rehearsal, ending, measured


@contextmanager
def _asking(
    candidate: Candidate, server: Server, rehearsal: Rehearsal, model: str, labels: Mapping[str, int]
) -> Iterator[None]:
    """Ask for each label, one request after the other, while the block runs."""
    declared = candidate.pipeline.models[model]
    examples = exported.examples(candidate.layout, model, declared.version)
    signature = next(iter(examples.inputs))
    over = threading.Event()

    def ask(label: str) -> None:
        client = RestClient(str(server.rest_url))
        index = 0
        while not over.wait(ASK_EVERY_S):
            row = slice(index % EXAMPLES, index % EXAMPLES + 1)
            index += 1
            try:
                client.predict(
                    f"{model}/labels/{label}", signature, {key: v[row] for key, v in examples.inputs[signature].items()}
                )
            except ServerError as error:
                rehearsal.failures.append(f"{model} label {label}: {error}")
            rehearsal.asked += 1

    threads = [threading.Thread(target=ask, args=(label,), name=f"label {label}") for label in labels]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _behind(server: Server, model: str, label: str) -> int:
    """Return the version that a label leads to; 0 where it leads to none.

    Asks for metadata: a model's status by label is that of all its versions.
    """
    try:
        found = RestClient(str(server.rest_url)).metadata(f"{model}/labels/{label}")
    except ServerError:
        return 0
    return int(found["model_spec"]["version"])
