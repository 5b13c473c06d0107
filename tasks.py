"""The project's commands: `invoke --list`. Each task parses its options, calls a stage and prints the outcome."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from invoke.context import Context as Invocation
from invoke.exceptions import Exit
from invoke.tasks import task

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))

from launchpad.commandline import ListOrName  # noqa: E402

COMMON = {
    "force": "run even what is up to date",
    "dry_run": "say what would run and why, run nothing",
}
LOAD = {
    "profile": "load-test profile of pipeline.yaml; the default one unless given",
    "duration": "seconds to measure, in place of the profile's",
    "processes": "processes that generate the load",
}


@contextmanager
def reported() -> Iterator[None]:
    from launchpad import pipeline

    with pipeline.reported(lambda code: Exit(code=code)):
        yield


def run(names: list[str], dry_run: bool = False, duration: float = 0.0, **options: Any) -> None:
    from launchpad import pipeline

    with reported():
        pipeline.run(names, pipeline.context(ROOT, duration_s=duration or None, **options), dry_run)


@task(help={**COMMON, **LOAD})
def deploy_local(
    _: Invocation,
    force: bool = False,
    dry_run: bool = False,
    profile: str = "",
    duration: float = 0.0,
    processes: int = 1,
) -> None:
    """Everything: export, configure, build, launch, warmup, loadtest, report."""
    from launchpad.pipeline import STAGES

    run(list(STAGES), dry_run, duration, force=force, profile=profile or None, processes=processes)


@task(help=COMMON)
def export(_: Invocation, force: bool = False, dry_run: bool = False) -> None:
    """Train or load each model, export it with preprocessing inside, verify it as the server loads it."""
    run(["export"], dry_run, force=force)


@task(help={**COMMON, "check": "fail if the committed files differ from what pipeline.yaml gives; write nothing"})
def configure(_: Invocation, force: bool = False, dry_run: bool = False, check: bool = False) -> None:
    """Render and lint the server's configuration files and flags into serving/config/."""
    if not check:
        run(["configure"], dry_run, force=force)
        return
    with reported():
        from launchpad import console, pipeline
        from launchpad.configure.stage import Configure

        console.say(Configure().check(pipeline.context(ROOT)).detail)


@task(
    help={
        **COMMON,
        "check": "fail if the committed files differ from what pipeline.yaml gives; build nothing",
        "print_": "show the docker command that builds the same image; build nothing",
        "push": "push the image to this registry, such as registry.example:5000/team",
    }
)
def build(
    _: Invocation,
    force: bool = False,
    dry_run: bool = False,
    check: bool = False,
    print_: bool = False,
    push: str = "",
) -> None:
    """Render the image's files and build the server image."""
    if not (check or print_ or push):
        run(["build"], dry_run, force=force)
        return
    with reported():
        from launchpad import console, pipeline
        from launchpad.image import stage as image

        given = pipeline.context(ROOT, force=force)
        if check:
            console.say(image.Build().check(given).detail)
        if print_:
            console.say(image.command(given))
        if push:
            console.say(image.push(given, push))


@task(help=COMMON)
def launch(_: Invocation, force: bool = False, dry_run: bool = False) -> None:
    """Start the model server in the background and wait until every model is AVAILABLE."""
    run(["launch"], dry_run, force=force)


@task(help={"dry_run": COMMON["dry_run"]})
def warmup(_: Invocation, dry_run: bool = False) -> None:
    """Send real requests to every signature; record first against steady latency."""
    run(["warmup"], dry_run)


@task(
    help={
        "dry_run": COMMON["dry_run"],
        **LOAD,
        "workers": "Locust workers on other hosts to wait for, in place of processes here",
        "kubernetes": "drive the servers of this kubectl context's cluster, from pods there",
    }
)
def loadtest(
    _: Invocation,
    dry_run: bool = False,
    profile: str = "",
    duration: float = 0.0,
    processes: int = 1,
    workers: int = 0,
    kubernetes: str = "",
) -> None:
    """Drive the running server with Locust; check every answer, record every latency."""
    if not kubernetes:
        options = {"profile": profile or None, "processes": workers or processes, "remote": workers > 0}
        run(["loadtest"], dry_run, duration, **options)
        return
    with reported():
        from launchpad import pipeline
        from launchpad.kubernetes.load import load

        load(pipeline.context(ROOT, profile=profile or None, duration_s=duration or None), kubernetes)


@task(
    auto_shortflags=False,
    help={
        "model": "search for this model alone; the traffic of the profile unless given",
        "signature": "signature of the model; its first unless given",
        "protocol": "rest, rest_columns or grpc",
        "p99": "latency to hold in ms; the declared objective unless given",
        "start": "rate in requests/s to begin with, where the capacity is roughly known",
        "profile": LOAD["profile"],
        "processes": LOAD["processes"],
    },
)
def capacity(
    _: Invocation,
    model: str = "",
    signature: str = "",
    protocol: str = "rest",
    p99: float = 0.0,
    start: float = 0.0,
    profile: str = "",
    processes: int = 1,
) -> None:
    """Find the highest rate of random arrivals at which p99 and the error rate hold."""
    with reported():
        from launchpad import pipeline
        from launchpad.loadtest.probing import show

        given = pipeline.context(ROOT, profile=profile or None, processes=processes)
        with pipeline.locked(given):
            show(given, model or None, signature or None, protocol, p99 or None, start or None)


@task(help={"model": "profile this model alone; those that are tuned unless given"})
def profile(_: Invocation, model: str = "") -> None:
    """Measure what requests of a model cost: batches of each size, reading, answering, the load generator."""
    with reported():
        from launchpad import pipeline
        from launchpad.tune.showing import show_profile

        given = pipeline.context(ROOT)
        with pipeline.locked(given):
            show_profile(given, model or None)


@task(
    help={
        "model": "tune this model alone; those that pipeline.yaml names under `tune`, or all, unless given",
        "variants": "profile the model exported in other ways, check their answers, show what each gains",
        "explain": "say what the simulator expects of a configuration, and why; measure nothing",
        "parameters": "explain these: batching as YAML, `off` or '{max_batch_size: 16, num_batch_threads: 2}'; the "
        "declared one unless given",
    }
)
def tune(_: Invocation, model: str = "", explain: bool = False, parameters: str = "", variants: bool = False) -> None:
    """Find the batching parameters that reach the goal, by simulation and measurement; write serving/tuned.yaml."""
    with reported():
        from launchpad import pipeline
        from launchpad.tune import showing
        from launchpad.tune import variants as other_exports

        given = pipeline.context(ROOT)
        if explain or parameters:
            showing.show_explanation(given, model or None, parameters)
            return
        with pipeline.locked(given):
            if variants:
                other_exports.show(given, model or None)
            else:
                showing.show_tuning(given, model or None)


@task(
    auto_shortflags=False,
    help={
        "policy": "threshold or model; the declared one unless given",
        "duration": "seconds after which it ends; until Ctrl-C unless given",
        "dry_run": "show what it would do, change nothing",
    },
)
def autotune(_: Invocation, policy: str = "", duration: float = 0.0, dry_run: bool = False) -> None:
    """Keep the running server's batching parameters right while traffic changes, without a restart."""
    with reported():
        from launchpad.tune.autotune.stage import run as adjust

        adjust(ROOT, policy, duration, dry_run)


@task(positional=["before", "after"], help={"before": "a run id", "after": "another run id"})
def compare(_: Invocation, before: str, after: str) -> None:
    """Say which percentile moved between two runs, by how much, and whether that is noise."""
    with reported():
        from launchpad.loadtest.comparing import show

        show(ROOT, before, after)


@task(name="report", help={"dry_run": COMMON["dry_run"], "run_id": "the run to report on; the newest unless given"})
def report_(_: Invocation, dry_run: bool = False, run_id: str = "") -> None:
    """Write reports/<run>/report.html and report.md."""
    run(["report"], dry_run, run=run_id or None)


@task(
    help={
        "force": "take a capacity result of other models or another machine",
        "check": "fail if the committed files differ from what pipeline.yaml and k8s/capacity.json give; write nothing",
    }
)
def manifests(_: Invocation, force: bool = False, check: bool = False) -> None:
    """Render the Kubernetes manifests in k8s/ from the declaration and the latest capacity result."""
    with reported():
        from launchpad import console, pipeline
        from launchpad.kubernetes import stage as kubernetes

        given = pipeline.context(ROOT, force=force)
        if check:
            console.say(kubernetes.check(given))
        else:
            kubernetes.manifests(given)


@task(
    auto_shortflags=False,
    help={
        "rate": "requests a second to hold",
        "p99": "latency to hold, such as 50ms; that of the capacity result unless given",
        "ramp": "how fast the load may rise to that rate, such as 60s",
        "ramp_from": "requests a second from which it rises; half of the rate unless given",
        "force": "take a capacity result of other models or another machine",
    },
)
def plan(
    _: Invocation, rate: str, p99: str = "", ramp: str = "60s", ramp_from: float = 0.0, force: bool = False
) -> None:
    """Say how many replicas hold a rate: by balancing, with one to spare, with a zone lost, while load rises."""
    with reported():
        from launchpad import pipeline
        from launchpad.kubernetes.plan import show

        show(pipeline.context(ROOT, force=force), rate, p99, ramp, ramp_from)


@task(
    name="deploy-k8s",
    auto_shortflags=False,
    help={
        "context": "kubectl's name of the cluster",
        "overlay": "which of k8s/overlays",
        "yes": "apply without asking",
    },
)
def deploy_k8s(_: Invocation, context: str, overlay: str = "cpu", yes: bool = False) -> None:
    """Bring the manifests into a cluster: difference, question, rollout, smoke test; back again on failure."""
    with reported():
        from launchpad import pipeline
        from launchpad.kubernetes.deploy import deploy

        deploy(pipeline.context(ROOT), context, overlay, yes)


@task(
    positional=["version"],
    auto_shortflags=False,
    help={
        "version": "of the release, such as 1.4.0; with --diff the later of two",
        "diff": "an earlier release to compare with: `invoke release --diff 1.3.0 1.4.0`",
        "force": "replace the checklist of a version that was released",
        "dry_run": "list the gates and their waivers, evaluate nothing",
    },
)
def release(_: Invocation, version: str, diff: str = "", force: bool = False, dry_run: bool = False) -> None:
    """Evaluate every gate of the release checklist; write reports/releases/<version>/."""
    with reported():
        from launchpad.release import command

        if diff:
            command.show_difference(ROOT, diff, version)
        else:
            command.release(ROOT, version, force, dry_run)


@task
def status(_: Invocation) -> None:
    """Show the server: models, versions, states, uptime, requests served."""
    with reported():
        from launchpad.launch.status import show

        show(ROOT)


@task(help={"lines": "how many lines, from the end", "follow": "go on as the log grows, until Ctrl-C"})
def logs(_: Invocation, lines: int = 50, follow: bool = False) -> None:
    """Print the server's log."""
    with reported():
        from launchpad.errors import DeclarationError
        from launchpad.launch.log import show

        if lines < 0:
            raise DeclarationError(f"{lines} lines are none", fix="give 0 or more")
        show(ROOT, lines, follow)


@task
def stop(_: Invocation) -> None:
    """End the server; it finishes what is in flight first."""
    with reported():
        from launchpad import console
        from launchpad.launch.stage import stop as stop_servers
        from launchpad.layout import Layout

        ended = stop_servers(Layout(ROOT))
        console.say(f"ended {ended} server{'s' if ended != 1 else ''}" if ended else "no server was running")


@task(help={"store": "delete the run store too, with the history of all runs"})
def clean(_: Invocation, store: bool = False) -> None:
    """End the server and delete what is not committed: deployment, logs, state. Artifacts and runs stay."""
    with reported():
        from launchpad.housekeeping import clean as clean_checkout

        clean_checkout(ROOT, store)


@task(
    help={
        "source": "path/to/module.py:function, a .keras file, or a SavedModel folder",
        "name": "name of the model; from the source unless given",
        "force": "replace the pipeline.yaml that is there",
    }
)
def init(_: Invocation, source: str, name: str = "", force: bool = False) -> None:
    """Write a working pipeline.yaml for a model of your own."""
    with reported():
        from launchpad.housekeeping import init as write_declaration

        write_declaration(ROOT, source, name, force)


@task(help={"check": "fail if the committed schema is not the one of the types; write nothing"})
def schema(_: Invocation, check: bool = False) -> None:
    """Write pipeline.schema.json, by which editors complete and check pipeline.yaml."""
    with reported():
        from launchpad.housekeeping import write_schema

        write_schema(ROOT, check)


@task(positional=["text"], help={"text": "what you changed, saw or did, and why; the first line is its title"})
def note(_: Invocation, text: str) -> None:
    """Write a note in reports/notes/: the reason of a change in pipeline.yaml, or one of its own."""
    with reported():
        from launchpad import console, declaration, notes

        path = notes.add(declaration.load(ROOT), text)
        console.say(f"wrote {path.relative_to(ROOT)}")


@task(
    klass=ListOrName,
    positional=["sql"],
    iterable=["given"],
    help={
        "sql": "a SELECT, or the name of a ready-made question",
        "list_": "show the ready-made questions and the views",
        "given": "a value that a ready-made question needs, name=value; may be repeated",
        "csv": "print CSV",
        "json": "print JSON",
    },
)
def query(
    _: Invocation, sql: str, list_: bool = False, given: Any = None, csv: bool = False, json: bool = False
) -> None:
    """Ask the store: SQL that reads, or a ready-made question."""
    with reported():
        from launchpad.query import asking

        if list_:
            asking.show_questions()
        else:
            asking.show(ROOT, sql, given or [], csv, json)


@task(
    help={
        "background": "go on in the background",
        "stop": "end the monitor in the background",
        "interval": "seconds between looks; monitor.interval_s of pipeline.yaml unless given",
        "duration": "seconds until it ends by itself; until Ctrl-C unless given",
    }
)
def monitor(
    _: Invocation, background: bool = False, stop: bool = False, interval: float = 0.0, duration: float = 0.0
) -> None:
    """Watch the running server: rates, latency, batches, refusals, CPU, memory, GPU; into the store."""
    with reported():
        from launchpad.monitor import watch

        if stop:
            watch.stop(ROOT)
        elif background:
            watch.start(ROOT, interval, duration)
        else:
            watch.run(ROOT, interval, duration)


@task(help={"port": "port of the page on 127.0.0.1; 0 takes a free one"})
def explore(_: Invocation, port: int = 8001) -> None:
    """Open the store in the browser: an SQL editor, ready-made questions, charts; for reading only."""
    with reported():
        from launchpad.query import explore as explorer

        explorer.show(ROOT, port)


@task(
    help={
        "fill": "add the runs of loadtests/results, the notes and the gates of releases in reports/ that it lacks",
        "prune": "delete what is older than monitor.keep_samples_days and keep_runs_days say",
    }
)
def store(_: Invocation, fill: bool = False, prune: bool = False) -> None:
    """Show what the store holds; fill it again from the files, delete what is old."""
    with reported():
        from launchpad.store import upkeep

        if fill:
            upkeep.fill(ROOT)
        if prune:
            upkeep.prune(ROOT)
        upkeep.show(ROOT)
