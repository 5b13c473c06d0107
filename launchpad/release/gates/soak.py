"""Gate on a load that lasts: errors, and whether the server's memory grows.

The slope is an ordinary least squares fit to the server's resident memory after a quarter of the soak, in which caches
and allocators settle. Its interval takes neighbouring samples as dependent: the residuals' lag-1 autocorrelation r
reduces n samples to n (1 - r) / (1 + r) (Santer et al., Journal of Geophysical Research 105, 2000, equations 6 to 9).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from launchpad import drawing, files
from launchpad.gates import Gate
from launchpad.loadtest.summary import failed_share
from launchpad.release.candidate import Candidate, Finding
from launchpad.release.gates.measured import load
from launchpad.runfolder import SERVER, SUMMARY

SETTLING = 0.25
FEWEST_SAMPLES = 5
CONFIDENCE_Z = 1.96


def soak(candidate: Candidate) -> Finding:
    """A long load leaves no errors beyond the objective, and memory does not grow beyond the limit.

    Where the limit lies inside the slope's interval the soak was too short to tell, and the gate did not run.
    """
    declared = candidate.pipeline.release.soak
    run, summary = load(candidate, "soak", declared.duration_s)
    folder = candidate.layout.results(run)
    evidence = [folder / SUMMARY]
    if summary["status"] != "completed":
        return Finding([Gate("soak", None, "<=", None, why=f"the run {summary['status']}: {summary['why']}")], evidence)
    totals = summary["totals"]
    errors = candidate.pipeline.objectives.error_rate or 0.0
    gates = [Gate("error rate of the soak", failed_share(totals), "<=", errors)]
    samples = [(float(row[0]), row[2]) for row in (files.read_json(folder / SERVER) or {"use": []})["use"]]
    settled = [sample for sample in samples if sample[0] >= SETTLING * summary["measured_s"]]
    name, limit, unit = "memory growth", declared.memory_mib_per_hour, "MiB/h"
    notes = [f"{totals['requests']:,} requests in {summary['measured_s']:.0f} s"]
    if len(settled) < FEWEST_SAMPLES:
        why = f"only {len(settled)} samples of the server's memory"
        return Finding([*gates, Gate(name, None, "<=", limit, unit, why)], evidence, notes)
    slope, half = growth(settled)
    notes.append(f"memory: {settled[0][1]:,.0f} → {settled[-1][1]:,.0f} MiB, {slope:+.1f} ± {half:.1f} MiB/h")
    if slope - half <= limit < slope + half:
        why = f"{slope:+.0f} ± {half:.0f} MiB/h: the soak is too short to tell; raise release.soak.duration_s"
        gates.append(Gate(name, None, "<=", limit, unit, why))
    else:
        gates.append(Gate(name, slope, "<=", limit, unit))
    written, published = candidate.keep("soak.svg")
    files.write_text(written, drawing.on_paper(drawing.svg(_chart, samples, "Memory of the server over the soak")))
    evidence += [folder / SERVER, published]
    return Finding(gates, evidence, notes)


def growth(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the slope of memory in MiB/h and half its 95 % interval."""
    seconds, memory = np.asarray(samples, dtype=float).T
    seconds = seconds - seconds.mean()
    slope = float(seconds @ memory / (seconds @ seconds))
    residuals = memory - memory.mean() - slope * seconds
    variance = float(residuals @ residuals)
    if np.ptp(memory) == 0 or variance == 0:
        return float(np.ptp(memory) and slope * 3600), 0.0
    correlation = min(max(float(residuals[1:] @ residuals[:-1]) / variance, 0.0), 0.99)
    effective = len(samples) * (1 - correlation) / (1 + correlation)
    error = math.sqrt(variance / max(effective - 2, 0.5) / float(seconds @ seconds))
    return slope * 3600, CONFIDENCE_Z * error * 3600


def _chart(axes: Any, samples: list[tuple[float, float]]) -> None:
    axes.plot([second for second, _ in samples], [mib for _, mib in samples], label="resident")
    axes.axvspan(0, SETTLING * samples[-1][0], alpha=0.1, label="settling")
    axes.set(xlabel="seconds", ylabel="MiB")
