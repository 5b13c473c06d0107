"""How long ordinary questions take on a store with a million samples and two hundred runs, on SQLite and PostgreSQL.

    python -m tests.benchmarks.store [--samples 1000000] [--out tests/benchmarks/results/store.json]

The samples are those of a server with two models, looked at every two seconds; figures are random. PostgreSQL is a
server of its own on 127.0.0.1, with fsync off. A time is the median of five, asked as `invoke query` asks, rows read.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

from launchpad import declaration, files, machine
from launchpad.declaration import Declaration
from launchpad.query.asking import ask
from launchpad.query.questions import QUESTIONS
from launchpad.store import Store
from tests.integration.store.conftest import TEXT, Postgres

ROOT = Path(__file__).parents[2]
MODELS = ("", "digits-cnn", "digits-mlp")
AT_ONCE = 30_000
REPEATS = 5
RUNS = 200

OWN = {
    "one hour of one model": "select at, p99_ms from samples where model = 'digits-cnn' "
    "and at between '2026-01-03 10:00:00' and '2026-01-03 11:00:00' order by at",
    "busiest minute of the last day": "select substr(cast(at as text), 1, 16) as minute, sum(answered) as answered "
    "from samples where model = '' and at > '2026-01-07 00:00:00' group by 1 order by answered desc limit 1",
    "worst p99 of each model": "select model, max(p99_ms) from samples group by model",
    "samples in all": "select count(*) from samples",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="store-") as folder, tempfile.TemporaryDirectory() as data:
        server = Postgres(Path(data))
        try:
            found = {
                "sqlite": measure(Path(folder) / "sqlite", "sqlite:///store.db", given.samples),
                "postgresql": measure(Path(folder) / "postgresql", server.database("big"), given.samples),
            }
        finally:
            server.stop()
    document = {"machine": machine.describe(), "samples": given.samples, "runs": RUNS, "found": found}
    show(found)
    if given.out:
        given.out.write_text(json.dumps(document, indent=1) + "\n")


def measure(root: Path, url: str, samples: int) -> dict[str, float]:
    """Fill a store; return {question: median time in ms}, and how fast samples were written."""
    root.mkdir()
    (root / "pipeline.yaml").write_text(TEXT.format(url=url))
    declared = declaration.load(root)
    began = time.perf_counter()
    fill(declared, samples)
    found = {"samples written a second": samples / (time.perf_counter() - began)}
    fill_runs(declared)
    for name, sql in {**{name: name for name in QUESTIONS}, **OWN}.items():
        needs = dict.fromkeys(QUESTIONS[sql].needs, "run-0100") if sql in QUESTIONS else {}
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            ask(declared, sql, needs)
            times.append((time.perf_counter() - start) * 1000)
        found[name] = statistics.median(times)
    return found


def fill(declared: Declaration, samples: int) -> None:
    chance = random.Random(1)
    moment = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    with Store.open(declared) as store:
        for first in range(0, samples, AT_ONCE):
            rows = []
            for number in range(first, min(first + AT_ONCE, samples)):
                at = moment + datetime.timedelta(seconds=2 * (number // len(MODELS)))
                rows.append(sample(at, MODELS[number % len(MODELS)], chance))
            store.add_samples(rows)


def sample(at: datetime.datetime, model: str, chance: random.Random) -> dict:
    p99_ms = chance.lognormvariate(3, 0.4)
    requests = chance.randint(0, 4000)
    figures = {"p50_ms": p99_ms / 4, "p95_ms": p99_ms / 2, "p99_ms": p99_ms, "mean_ms": p99_ms / 3}
    row = {"at": at, "instance": "one", "model": model, "seconds": 2.0, "answered": requests, "failed": 0, **figures}
    row |= {"refused": int(chance.random() < 0.001), "rate_rps": requests / 2, "objective_p99_ms": 60.0, "trouble": ""}
    return row | {"cpu": chance.random() if not model else None, "memory_mib": 400.0 if not model else None}


def fill_runs(declared: Declaration) -> None:
    folder = min((ROOT / "loadtests" / "results").glob("*/summary.json")).parent
    summary = files.read_json(folder / "summary.json")
    with Store.open(declared) as store:
        for number in range(RUNS):
            started = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(hours=number)
            store.add_run(summary | {"run": f"run-{number:04}", "started": started.isoformat()}, folder)


def show(found: dict[str, dict[str, float]]) -> None:
    print(f"{'':34}{'SQLite':>12}{'PostgreSQL':>12}")
    for name in found["sqlite"]:
        unit = "/s" if name.startswith("samples written") else "ms"
        print(f"{name:34}" + "".join(f"{found[kind][name]:>9,.0f} {unit}" for kind in ("sqlite", "postgresql")))


if __name__ == "__main__":
    main()
