"""What `invoke plan` computes beside what was measured: two and three servers behind nginx, balanced three ways.

    python -m tests.benchmarks.fleet --afresh --limit 270     # then without --afresh, until nothing is left

The servers are real embedded ones; their model waits in its graph instead of computing, so that two cores are enough
for all of them, nginx and the load generator. One server alone is measured first: the computed replica is fitted to
that, and to nothing of the fleets. Each figure is written to results/fleet.json as it comes; what is there is not
measured again, so that it can be run in slices.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from launchpad import files, machine
from launchpad.examples import Examples
from launchpad.kubernetes import fleet
from launchpad.kubernetes.fleet import BALANCERS, Observed
from tests import fleets
from tests.integration.conftest import Checkout, free_ports

RESULTS = Path(__file__).parent / "results" / "fleet.json"
ALONE_RPS = (20.0, 35.0, 45.0, 55.0, 65.0, 75.0)
BUSY = (0.7, 0.95)
"""Of the highest rate at which one server was measured to hold the objective."""
OBJECTIVE_MS = 100.0
PERCENTILES = (50, 90, 99)
AROUND_S = 15.0
"""What a run takes beside its length: servers and the load generator start and end."""


def checkout(folder: Path) -> Checkout:
    """Return a checkout that declares the waiting model, with the model and its examples where an export puts them.

    The export itself would refuse it: TensorFlow 2 does not load the iterator that the waiting is made of.
    """
    made = Checkout(folder / "checkout")
    fleets.make_model(made.root / "saved")
    made.invoke("init", "--source", "saved", "--name", fleets.MODEL, "--force", check=True)
    shutil.copytree(made.root / "saved", made.layout.version(fleets.MODEL, 1))
    values = np.arange(16, dtype=np.float32).reshape(16, 1)
    evidence = made.layout.evidence(fleets.MODEL, 1)
    evidence.mkdir(parents=True)
    examples = Examples({"serving_default": {"x": values}}, {"serving_default": {"y": values}}, labels=None)
    examples.save(evidence / "examples.npz")
    return made


def measure(
    folder: Path, made: Checkout, servers: int, balancer: str, rate_rps: float, seconds: float
) -> dict[str, Any]:
    """Return the figures of a load on a number of servers, behind nginx where there are several."""
    ports = free_ports(2 * servers + 1)
    pairs = list(zip(ports[:servers], ports[servers : 2 * servers], strict=True))
    base, run = made.layout.versions(fleets.MODEL), Path(tempfile.mkdtemp(dir=folder))
    with fleets.servers(base, pairs):
        if servers == 1:
            return fleets.load(made.root, run / "load", pairs[0][0], rate_rps, seconds)
        with fleets.nginx(run / "nginx", ports[-1], balancer, [rest for rest, _ in pairs]):
            return fleets.load(made.root, run / "load", ports[-1], rate_rps, seconds)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=20.0, help="length of each run")
    options.add_argument("--limit", type=float, default=math.inf, help="seconds to stay within")
    options.add_argument("--afresh", action="store_true", help="forget the figures that are there")
    given = options.parse_args()
    deadline = time.monotonic() + given.limit - given.seconds - AROUND_S
    kept: dict[str, Any] = (None if given.afresh else files.read_json(RESULTS)) or {"alone": {}, "fleets": {}}
    kept |= {
        "machine": machine.describe(),
        "seconds": given.seconds,
        "made": f"{datetime.datetime.now(datetime.UTC):%F}",
    }
    with tempfile.TemporaryDirectory() as name:
        made = checkout(Path(name))
        for rate in ALONE_RPS:
            if str(rate) not in kept["alone"]:
                end_if_over(deadline)
                kept["alone"][str(rate)] = measure(Path(name), made, 1, "", rate, given.seconds)
                files.write_json(RESULTS, kept)
                print(f"one server, {rate:g} requests/s: p99 {kept['alone'][str(rate)]['p99_ms']:.0f} ms", flush=True)
        fitted, held = fitted_to(kept["alone"])
        for servers in (2, 3):
            for balancer in BALANCERS:
                for busy in BUSY:
                    key = f"{servers} {balancer} {busy:g}"
                    if key in kept["fleets"]:
                        continue
                    end_if_over(deadline)
                    figures = measure(Path(name), made, servers, balancer, busy * held * servers, given.seconds)
                    kept["fleets"][key] = {"rate_rps": busy * held * servers, **figures}
                    files.write_json(RESULTS, kept)
                    print(key, f"p99 {figures['p99_ms']:.0f} ms", flush=True)
    for key, measured in kept["fleets"].items():
        servers, balancer = int(key.split()[0]), key.partition(" ")[2].rpartition(" ")[0]
        each = measured["rate_rps"] / servers
        taken = fleet.latencies(fitted.replica, balancer, servers, each)  # type: ignore[arg-type]
        for percentile in PERCENTILES:
            measured[f"computed_p{percentile}_ms"] = round(float(np.percentile(taken, percentile)) * 1e3, 1)
    kept["replica"] = vars(fitted.replica) | {"p50_off": fitted.p50_off, "p99_off": fitted.p99_off}
    files.write_json(RESULTS, kept)
    show(kept)


def end_if_over(deadline: float) -> None:
    if time.monotonic() > deadline:
        sys.exit("time is over; run it again for what is left")


def fitted_to(alone: dict[str, Any]) -> tuple[fleet.Fit, float]:
    """Return the replica that is fitted to one server's figures, and the highest rate that held the objective."""
    rates = {float(rate): figures for rate, figures in alone.items()}
    held = max(rate for rate, figures in rates.items() if figures["p99_ms"] <= OBJECTIVE_MS)
    observed = [Observed(rate, rates[rate]["p50_ms"] / 1e3, rates[rate]["p99_ms"] / 1e3) for rate in sorted(rates)]
    return fleet.fit(observed, held), held


def show(kept: dict[str, Any]) -> None:
    print(json.dumps(kept["replica"]))
    names = [name for percentile in PERCENTILES for name in (f"p{percentile} ms", "computed")]
    print(f"{'servers':>7} {'balancing':13} {'rate /s':>8} {' '.join(f'{name:>8}' for name in names)}")
    for key, row in kept["fleets"].items():
        servers, balancer = key.split()[0], key.partition(" ")[2].rpartition(" ")[0]
        values = [row[f"{kind}p{percentile}_ms"] for percentile in PERCENTILES for kind in ("", "computed_")]
        print(f"{servers:>7} {balancer:13} {row['rate_rps']:8.1f} {' '.join(f'{value:8.1f}' for value in values)}")


if __name__ == "__main__":
    sys.exit(main())
