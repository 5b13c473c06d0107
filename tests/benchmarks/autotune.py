"""p99 under a scripted load: batching that follows it, beside fixed parameters.

    python -m tests.benchmarks.autotune                        # an hour
    python -m tests.benchmarks.autotune --fixed 'off;16, 0 µs' --policies model --rounds 8 --low 300

The load of digits-cnn is low, five times that, a spike of seven times, low; requests are due at random times, the same
ones for all. `--low` should be so low that the spike is well under what this machine answers: near to that, p99 is made
by the worst stall that a run meets.
Each contender is an embedded server in a checkout of its own: with fixed parameters, or starting from small batches
with `invoke autotune` beside it. What is compared is p99 of the median second in the last third of each phase, when
there was time to adjust; every request must have been answered. The best fixed parameters are those with the least mean
ratio to the best of each phase. Contenders take turns, in opposite order each time; the seconds of all rounds count
together, and the rounds, resampled, say how sure a ratio is. Load generator, server and autotuner share the cores.
`--policies model` needs the profile of digits-cnn in serving/profiles/.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from launchpad import console, machine, runfolder
from launchpad.launch.stage import stop
from launchpad.loadtest.arrivals import constant_rate, poisson
from tests.integration.conftest import REPOSITORY, Checkout

MODEL = "digits-cnn"
STEPS = (1, 5, 7, 1)
"""Times the low rate."""
DECLARED = "{max_batch_size: 16, batch_timeout_micros: 500, max_enqueued_batches: 64}"
SMALL = "4, 0 µs"
"""What autotune begins with."""
FIXED = {
    "off": "off",
    "16, 500 µs (declared)": DECLARED,
    SMALL: "{max_batch_size: 4, batch_timeout_micros: 0, max_enqueued_batches: 256}",
    "16, 0 µs": "{max_batch_size: 16, batch_timeout_micros: 0, max_enqueued_batches: 64}",
    "8, 2000 µs": "{max_batch_size: 8, batch_timeout_micros: 2000, max_enqueued_batches: 128}",
    "64, 0 µs": "{max_batch_size: 64, batch_timeout_micros: 0, max_enqueued_batches: 16}",
    "64, 5000 µs": "{max_batch_size: 64, batch_timeout_micros: 5000, max_enqueued_batches: 16}",
}
RESAMPLED = 500
AUTOTUNE = (
    "autotune: {{policy: {policy}, load_floor_rps: 200, interval_s: 3, window_s: 6, min_requests: 200, "
    "confirmations: 2, cool_down_s: 4, changes_per_hour: 1000}}"
)


@dataclass
class Contender:
    """A way to run the server, and p99 in ms of each second in the last third of each phase, round by round."""

    name: str
    checkout: Checkout
    policy: str = ""
    rounds: list[list[list[float]]] = field(default_factory=list)
    changes: int = 0
    unanswered: int = 0

    def p99_ms(self, rounds: Iterable[int] = ()) -> np.ndarray:
        """[phases] ms of the median second, of all rounds or of some."""
        chosen = [self.rounds[number] for number in rounds] or self.rounds
        return np.array([statistics.median(itertools.chain(*phase)) for phase in zip(*chosen, strict=True)])


def prepared(root: Path, name: str, batching: str, policy: str, rates: Sequence[int], seconds: int) -> Contender:
    """Make a checkout for a contender."""
    root.mkdir()
    checkout = Checkout(root)
    text = (root / "pipeline.yaml").read_text()
    cnn = text.index(f"  {MODEL}:\n") + len(f"  {MODEL}:\n")
    text = f"{text[:cnn]}    batching: {batching}\n{text[cnn:]}"
    head, _, rest = text.partition("\nautotune:")
    text = f"{head}\n{AUTOTUNE.format(policy=policy or 'threshold')}\n\nkubernetes:{rest.partition('kubernetes:')[2]}"
    scripted = (
        f"{{loop: open, rate_rps: 1, arrivals: trace.txt, duration_s: {seconds * len(STEPS)}, "
        f"traffic: [{{model: {MODEL}, signature: bytes}}]}}"
    )
    text = text.replace("    smoke:\n", f"    scripted: {scripted}\n    smoke:\n")
    (root / "pipeline.yaml").write_text(text)
    times = [
        phase * seconds + due
        for phase, rate in enumerate(rates)
        for due in poisson(constant_rate(rate, seconds), phase)
    ]
    (root / "trace.txt").write_text("".join(f"{time_s:.6f}\n" for time_s in times))
    profiles = REPOSITORY / "serving" / "profiles"
    if profiles.exists():
        shutil.copytree(profiles, root / "serving" / "profiles", dirs_exist_ok=True)
    for stage in ("export", "configure"):
        checkout.invoke(stage, check=True)
    if policy == "model":  # has the simulator compiled, as it is where `invoke tune` has run
        checkout.invoke("tune", "--explain", "--model", MODEL, check=True)
    return Contender(name, checkout, policy)


def measure(contender: Contender, seconds: int) -> None:
    """Drive the contender once."""
    checkout = contender.checkout
    checkout.invoke("launch", "--force", check=True)
    adjusting: subprocess.Popen[str] | None = None
    if contender.policy:
        adjusting = checkout.start(
            "autotune", "--policy", contender.policy, "--duration", str(seconds * len(STEPS) + 5)
        )
    checkout.invoke("loadtest", "--profile", "scripted")  # a phase over the objective is a figure here, not a failure
    if adjusting:
        said, _ = adjusting.communicate(timeout=60)
        contender.changes += sum(" changes to " in line or " returns to " in line for line in said.splitlines())
        console.say(said)
    stop(checkout.layout)
    folder = checkout.runs()[-1]
    summary = json.loads((folder / "summary.json").read_text())
    contender.unanswered += summary["totals"]["failures"]
    contender.rounds.append(last_thirds(folder, seconds))


def last_thirds(folder: Path, seconds: int) -> list[list[float]]:
    """Return p99 in ms of each second in the last third of each phase of a run."""
    found: list[list[float]] = [[] for _ in STEPS]
    for _, second, histogram in runfolder.read_histograms(folder):
        phase, at = divmod(second, seconds)
        if phase < len(STEPS) and at >= seconds * 2 / 3:
            found[int(phase)].append(histogram.get_value_at_percentile(99) / 1000)
    return found


def show(contenders: list[Contender], rates: Sequence[int]) -> None:
    """Print p99 by phase, and the ratios to the best fixed parameters."""
    fixed = [contender for contender in contenders if not contender.policy]
    least = np.min([contender.p99_ms() for contender in fixed], axis=0)

    def regret(contender: Contender) -> float:
        return float(np.exp(np.mean(np.log(contender.p99_ms() / least))))

    best = min(fixed, key=regret)
    rows = []
    for contender in contenders:
        p99_ms = contender.p99_ms()
        ratios, (lows, highs) = p99_ms / best.p99_ms(), interval(contender, best)
        cells = [
            f"{value:.2f}" if contender is best else f"{value:.2f} ({ratio:.2f}; {low:.2f} to {high:.2f})"
            for value, ratio, low, high in zip(p99_ms, ratios, lows, highs, strict=True)
        ]
        name = contender.name + (" ← best fixed" if contender is best else "")
        rows.append((name, *cells, f"{regret(contender):.2f}", contender.changes or "", contender.unanswered))
    columns = ("batching", *(f"{rate}/s" for rate in rates), "to each phase's best", "changes", "unanswered")
    title = "p99, ms, of the median second in the last third of each phase (ratio to the best fixed; 90 % of resampled)"
    console.table(title, columns, rows, right=columns[1:])


def interval(contender: Contender, best: Contender) -> np.ndarray:
    """[2, phases]: where 90 % of the ratios lie that other rounds might have had; bootstrap of whole rounds."""
    chance, count = np.random.default_rng(0), len(best.rounds)
    drawn = (chance.choice(count, count) for _ in range(RESAMPLED))
    return np.quantile([contender.p99_ms(picked) / best.p99_ms(picked) for picked in drawn], (0.05, 0.95), axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=24, help="length of a phase; a multiple of 3")
    parser.add_argument("--low", type=int, default=500, help="requests/s of the lowest phase")
    parser.add_argument("--policies", default="threshold,model", help="policies to try")
    parser.add_argument("--fixed", default=";".join(FIXED), help="fixed parameters to compare with, between semicolons")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    rates = [options.low * step for step in STEPS]
    facts = machine.describe()
    console.say(f"{facts['processor']}, {facts['cores']} cores; phases of {options.seconds} s; {options.rounds} rounds")
    with ExitStack() as cleanup, tempfile.TemporaryDirectory() as folder:
        wanted = [(name, FIXED[name], "") for name in options.fixed.split(";")]
        wanted += [(f"autotune, {policy}", FIXED[SMALL], policy) for policy in options.policies.split(",") if policy]
        contenders = [
            prepared(Path(folder) / str(number), name, batching, policy, rates, options.seconds)
            for number, (name, batching, policy) in enumerate(wanted)
        ]
        for contender in contenders:
            cleanup.callback(stop, contender.checkout.layout)
        for number in range(options.rounds):
            for contender in contenders[:: 1 if number % 2 == 0 else -1]:
                measure(contender, options.seconds)
    show(contenders, rates)


if __name__ == "__main__":
    main()
