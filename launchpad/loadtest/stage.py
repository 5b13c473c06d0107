"""The load-test stage: runs Locust on the launched server, watches both, and leaves a run folder."""

from __future__ import annotations

import contextlib
import csv
import datetime
import json
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launchpad import children, console, files, machine
from launchpad.client import RestClient, ServerError
from launchpad.errors import EnvironmentFault, Problem
from launchpad.gates import Gate
from launchpad.layout import Layout
from launchpad.loadtest import summary
from launchpad.runfolder import HISTORY, SUMMARY, TOTALS
from launchpad.server import Server
from launchpad.spec import Profile, Traffic
from launchpad.stage import Context, Outcome, Plan, Stage
from launchpad.store import Store

GENERATOR_LOG = "locust.log"
GRACE_S = 60.0
"""How much longer than declared a run may take, starting its users included, before it is ended."""


@dataclass
class Ending:
    """How a run came to its end."""

    status: str = "completed"
    why: str = ""
    measured_s: float | None = None
    generator_cpu_s: float | None = None


class LoadTest(Stage):
    name = "loadtest"
    summary = "drive the server with real requests, check every answer, record every latency"

    def plan(self, context: Context) -> list[Plan]:
        name, profile = _profile(context)
        return [Plan(f"profile {name}: {profile.users} users, {profile.duration_s:g} s", "a live stage always runs")]

    def run(self, context: Context) -> Outcome:
        server = Server.ready(context.layout)
        _refuse_absent(server)
        name, profile = _profile(context)
        run = context.run or new_run()
        folder = context.layout.results(run)
        folder.mkdir(parents=True)
        _keep_configuration(context.layout, folder)
        started = datetime.datetime.now(datetime.UTC)
        ending = Ending()
        try:
            _drive(context, server, name, profile, folder, ending)
        except KeyboardInterrupt:
            ending.status, ending.why = "interrupted", "interrupted by the user"
            raise
        finally:
            traffic = context.declaration.pipeline.traffic(name)
            document = _summarise(context, server, run, name, profile, traffic, folder, started, ending)
        return _outcome(document, folder)


def new_run() -> str:
    """Return a new run id: the local time and a random part."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _profile(context: Context) -> tuple[str, Profile]:
    loadtest = context.declaration.pipeline.loadtest
    name = context.profile or loadtest.profile
    profile = loadtest.profiles[name]
    return name, profile.model_copy(update={"duration_s": context.duration_s}) if context.duration_s else profile


def _refuse_absent(server: Server) -> None:
    client = RestClient(server.rest_url or "", timeout_s=5)
    try:
        for model in server.models:
            client.states(model)
    except ServerError as error:
        raise EnvironmentFault(
            f"the launched server does not answer: {error.kind}", fix="run `invoke launch`"
        ) from None


def _keep_configuration(layout: Layout, folder: Path) -> None:
    """Copy what the run was made with into its folder."""
    shutil.copy2(layout.root / "pipeline.yaml", folder / "pipeline.yaml")
    shutil.copytree(layout.serving_config, folder / "config")


def _drive(context: Context, server: Server, name: str, profile: Profile, folder: Path, ending: Ending) -> None:
    """Run Locust to its end, and note in `ending` how that came. Whatever happens, Locust does not outlive the call."""
    with (folder / GENERATOR_LOG).open("wb") as log:
        generator = subprocess.Popen(
            _command(context.layout, profile),
            cwd=context.layout.root,
            env={
                **children.environment(),
                "LAUNCHPAD_RUN_FOLDER": str(folder),
                "LAUNCHPAD_PROFILE": name,
                "LAUNCHPAD_DURATION_S": str(profile.duration_s),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            preexec_fn=children.end_with_parent,
        )
        try:
            with console.progress(f"loadtest: profile {name}, {profile.users} users") as advance:
                _follow(generator, server, profile, ending, advance)
            generator.wait(timeout=GRACE_S)
        finally:
            _end(generator)
    if ending.status == "completed" and generator.returncode not in (0, 1):  # 1: some requests failed
        ending.status, ending.why = "failed", f"Locust ended with exit code {generator.returncode}; see {GENERATOR_LOG}"
    elif ending.status == "completed" and ending.measured_s is None:
        ending.status, ending.why = "failed", f"Locust ended before the run did; see {GENERATOR_LOG}"


def _command(layout: Layout, profile: Profile) -> list[str]:
    options = ["--headless", f"--users={profile.users}", f"--spawn-rate={profile.spawn_rate}", "--stop-timeout=0"]
    locustfile = layout.relative(layout.locustfile)
    return [sys.executable, "-m", "locust", "-f", locustfile, *options, "--loglevel=WARNING", "--only-summary"]


def _follow(
    generator: subprocess.Popen[str], server: Server, profile: Profile, ending: Ending, advance: console.Advance
) -> None:
    """Read the generator's progress until it ends; end it early when the server dies or time runs out."""
    deadline = time.monotonic() + profile.duration_s + profile.users / profile.spawn_rate + GRACE_S
    for progress in _lines(generator):
        if "second" in progress:
            advance(progress["second"] + 1, profile.duration_s)
        ending.measured_s = progress.get("measured_s", ending.measured_s)
        ending.generator_cpu_s = progress.get("cpu_s", ending.generator_cpu_s)
        if ending.status == "completed" and not server.is_running:
            ending.status, ending.why = "failed", "the server ended in the middle of the run"
            generator.send_signal(signal.SIGTERM)
        if ending.status == "completed" and time.monotonic() > deadline:
            ending.status, ending.why = "failed", "the run took far longer than declared"
            generator.send_signal(signal.SIGTERM)


def _lines(generator: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert generator.stdout is not None
    for text in generator.stdout:
        with contextlib.suppress(ValueError):
            progress = json.loads(text)
            if isinstance(progress, dict):
                yield progress


def _end(generator: subprocess.Popen[str]) -> None:
    """Let Locust write what it has, and make sure that it is gone."""
    if generator.poll() is None:
        generator.send_signal(signal.SIGTERM)
        try:
            generator.wait(timeout=10)
        except subprocess.TimeoutExpired:
            generator.kill()
            generator.wait()


def _summarise(
    context: Context,
    server: Server,
    run: str,
    name: str,
    profile: Profile,
    traffic: tuple[Traffic, ...],
    folder: Path,
    started: datetime.datetime,
    ending: Ending,
) -> dict[str, Any]:
    """Write `summary.json` and `totals.csv` from the run's artifacts, and the run into the store."""
    models = {line.line: line.model for line in traffic}
    if (folder / HISTORY).exists():
        measured = summary.of_folder(folder, models, ending.measured_s)
    else:
        measured = {"measured_s": 0.0, "totals": None, "models": {}, "lines": {}, "errors": []}
        if ending.status == "completed":
            ending.status, ending.why = "failed", f"nothing was measured; see {GENERATOR_LOG}"
    gates = summary.objectives(measured, context.declaration.pipeline.objectives) if measured["totals"] else []
    document = {
        "run": run,
        "status": ending.status,
        "why": ending.why,
        "started": started.isoformat(timespec="seconds"),
        "profile": {"name": name, "loop": "closed", **profile.model_dump(mode="json", exclude={"traffic"})},
        "traffic": [line.model_dump(mode="json") for line in traffic],
        "configuration": server.content,
        "server": asdict(server),
        "machine": machine.describe(),
        "generator": {"processes": 1, "cpu_s": ending.generator_cpu_s},
        "warmup": _warmup(context.layout, server),
        "objectives": [gate.as_dict() for gate in gates],
        **measured,
    }
    files.write_json(folder / SUMMARY, document)
    if measured["totals"]:
        _write_totals(folder / TOTALS, measured)
    with Store.open(context.declaration) as store:
        store.add_run(document)
    return document


def _warmup(layout: Layout, server: Server) -> list[dict[str, Any]]:
    """Return what the warmup stage saw of this start of the server; nothing if it did not run."""
    result = files.read_json(layout.warmup_result) or {}
    return result["warmed"] if result.get("instance") == server.instance else []


def _write_totals(path: Path, measured: dict[str, Any]) -> None:
    columns = list(measured["totals"])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("scope", "name", *columns))
        writer.writerow(("all", "", *measured["totals"].values()))
        for scope in ("models", "lines"):
            for name, figures in measured[scope].items():
                writer.writerow((scope.removesuffix("s"), name, *figures.values()))


def _outcome(document: dict[str, Any], folder: Path) -> Outcome:
    failures = []
    place = f"run {document['run']}"
    if document["status"] != "completed":
        failures.append(Problem(f"the load test {document['status']}: {document['why']}", place))
    for row in document["objectives"]:
        gate = Gate(**{key: value for key, value in row.items() if key != "passed"})
        if gate.passed is not True:
            failures.append(Problem(f"{gate.name} is {gate.measured}, must be {gate.required}", place))
    totals = document["totals"]
    detail = document["why"]
    if totals:
        detail = (
            f"{totals['requests']} requests, {totals['failures']} failed, {totals['throughput_rps']:g} requests/s, "
            f"p99 {totals['p99_ms']} ms"
        )
    return Outcome("failed" if failures else "done", detail, (folder,), tuple(failures))
