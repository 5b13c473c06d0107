"""The load-test stage: runs Locust on the launched server, watches both, and leaves a run folder."""

from __future__ import annotations

import csv
import datetime
import secrets
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launchpad import console, files, machine
from launchpad.backends import how_ended
from launchpad.client import RestClient, ServerError
from launchpad.declaration import FILE
from launchpad.errors import EnvironmentFault, Problem
from launchpad.gates import Gate
from launchpad.layout import Layout
from launchpad.loadtest import generator, serverside, summary
from launchpad.loadtest.cores import apart
from launchpad.runfolder import SUMMARY, TOTALS
from launchpad.server import Server
from launchpad.spec import OpenLoop, Profile
from launchpad.stage import Context, Outcome, Plan, Stage
from launchpad.store import attempt


class LoadTest(Stage):
    name = "loadtest"
    summary = "drive the server with real requests, check every answer, record every latency"

    def plan(self, context: Context) -> list[Plan]:
        name, profile = profile_of(context)
        return [Plan(f"profile {name}: {profile.title}, {profile.duration_s:g} s", "a live stage always runs")]

    def run(self, context: Context) -> Outcome:
        server = Server.ready(context.layout)
        refuse_absent(server)
        return measure(context, Target(server, machine.describe(), lambda: how_ended(server)))


@dataclass(frozen=True)
class Target:
    """What a load test drives.

    machine: what the server runs on. how_ended: says how the server has ended, empty while it runs.
    command: what prints what Locust measures elsewhere; empty where Locust is started here.
    """

    server: Server
    machine: dict[str, Any]
    how_ended: generator.HowEnded
    command: Sequence[str] = ()


def measure(context: Context, target: Target) -> Outcome:
    """Run the chosen profile against a target; leave a run folder and an entry in the store."""
    name, profile = profile_of(context)
    _refuse_bad_trace(context, profile)
    run_id = context.run or new_run()
    run = Run(
        id=run_id,
        target=target,
        profile_name=name,
        profile=profile,
        processes=context.processes,
        folder=context.layout.results(run_id),
        started=datetime.datetime.now(datetime.UTC),
        ending=generator.Ending(),
    )
    run.folder.mkdir(parents=True)
    _keep_configuration(context, run.folder)
    watch = serverside.Watch(target.server)
    try:
        with (
            console.progress(f"loadtest: profile {name}, {profile.title}") as advance,
            apart(target.server, 0 if context.remote else context.processes),
        ):
            _drive(context, run, watch, advance)
    except KeyboardInterrupt:
        run.ending.status, run.ending.why = "interrupted", "interrupted by the user"
        raise
    finally:
        watch.keep(run.folder)
        document = _summarise(context, run)
    return _outcome(document, run.folder)


def _drive(context: Context, run: Run, watch: serverside.Watch, advance: console.Advance) -> None:
    def observe(part: dict[str, Any]) -> bool:
        watch.see(part["second"])
        advance(min(run.ending.measured_s, run.profile.duration_s), run.profile.duration_s)
        return True

    host = ""
    if context.remote:
        host = f"http://{socket.gethostname()}:{run.target.server.rest_port}"
        console.say(
            f"  waiting for {run.processes} workers that ask {host}; start on each host, in a checkout like this:"
        )
        console.say(f"    {_worker_command(run)}")
    generator.drive(
        context.layout,
        run.target.how_ended,
        run.profile,
        run.processes,
        run.folder,
        run.ending,
        observe,
        host,
        run.target.command,
    )


def _worker_command(run: Run) -> str:
    settings = f"LAUNCHPAD_PROFILE={run.profile_name} {generator.PROCESSES}={run.processes}"
    return f"{settings} locust -f loadtests/ {generator.USER_CLASS} --worker --master-host {socket.gethostname()}"


def new_run() -> str:
    """Return a new run id: the time, UTC, so that runs are in order wherever they were made, and a random part."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def profile_of(context: Context) -> tuple[str, Profile]:
    """Return the chosen profile and its name, with the duration that was asked for."""
    loadtest = context.declaration.pipeline.loadtest
    name = context.profile or loadtest.profile
    profile = loadtest.profiles[name]
    return name, profile.model_copy(update={"duration_s": context.duration_s}) if context.duration_s else profile


def refuse_absent(server: Server) -> None:
    """Raise EnvironmentFault if the server does not answer; one without REST, if it has ended."""
    if not server.rest_url:
        if ended := how_ended(server):
            raise EnvironmentFault(f"the launched server has ended: {ended}", fix="run `invoke launch`")
        return
    client = RestClient(server.rest_url, timeout_s=5)
    try:
        for model in server.models:
            client.states(model)
    except ServerError as error:
        raise EnvironmentFault(
            f"the launched server does not answer: {error.kind}", fix="run `invoke launch`"
        ) from None


def _refuse_bad_trace(context: Context, profile: Profile) -> None:
    """Raise DeclarationError, before any load, for a trace that cannot be replayed."""
    if isinstance(profile, OpenLoop) and profile.arrivals not in ("poisson", "constant"):
        from launchpad.loadtest.arrivals import replay

        replay(context.layout.root / profile.arrivals)


def _keep_configuration(context: Context, folder: Path) -> None:
    """Put what the run is made with into its folder: the declaration as it was read, whatever has become of it."""
    files.write_text(folder / FILE, context.declaration.text)
    shutil.copytree(context.layout.serving_config, folder / "config")


@dataclass(frozen=True)
class Run:
    """What a run is made of: on what, with what, where it is kept, and how it ended."""

    id: str
    target: Target
    profile_name: str
    profile: Profile
    processes: int
    folder: Path
    started: datetime.datetime
    ending: generator.Ending


def _summarise(context: Context, run: Run) -> dict[str, Any]:
    """Write `summary.json` and `totals.csv` from the run's artifacts, and the run into the store."""
    pipeline, ending = context.declaration.pipeline, run.ending
    traffic = pipeline.traffic(run.profile)
    measured_s = min(ending.measured_s, run.profile.duration_s)  # answers that were waited for at the end took longer
    measured = summary.of_folder(run.folder, {line.line: line.model for line in traffic}, measured_s)
    if not measured["totals"]["requests"]:
        ending.fail(f"nothing was measured; see {generator.LOG}")
    gates = summary.objectives(measured, pipeline.objectives)
    document = {
        "run": run.id,
        "status": ending.status,
        "why": ending.why,
        "started": run.started.isoformat(timespec="seconds"),
        "profile": {
            "name": run.profile_name,
            "title": run.profile.title,
            **run.profile.model_dump(mode="json", exclude={"traffic"}),
        },
        "traffic": [line.model_dump(mode="json") for line in traffic],
        "configuration": run.target.server.configuration,
        "server": asdict(run.target.server),
        "machine": run.target.machine,
        "generator": summary.generator_health(run.folder, run.processes, ending.cpu, ending.held),
        "warmup": _warmup(context.layout, run.target.server),
        "objectives": [gate.as_dict() for gate in gates],
        **measured,
    }
    files.write_json(run.folder / SUMMARY, document)
    _write_totals(run.folder / TOTALS, measured)
    attempt(context.declaration, lambda store: store.add_run(document, run.folder))
    return document


def _warmup(layout: Layout, server: Server) -> list[dict[str, Any]]:
    """Return what the warmup stage saw of this start of the server; nothing if it did not run."""
    result = files.read_mapping(layout.warmup_result)
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
    if document["generator"]["limited"]:
        failures.append(Problem(f"the run is generator-limited: {document['generator']['why']}", place))
    totals = document["totals"]
    detail = document["why"]
    if totals["requests"]:
        detail = (
            f"{totals['requests']} requests, {totals['failures']} failed, {totals['throughput_rps']:g} requests/s, "
            f"p99 {totals['p99_ms']} ms"
        )
    return Outcome("failed" if failures else "done", detail, (folder,), tuple(failures))
