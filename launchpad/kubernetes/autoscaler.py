"""How an autoscaler follows a ramp of load, second by second, and how much headroom that takes. Pure.

The rule is HorizontalPodAutoscaler's: every SYNC_S seconds, wanted = ceil(pods × load of a ready pod ÷ target), nothing
within TOLERANCE, and no faster than the policies of the rendered manifests allow. It sees the mean load of the last
WINDOW_S seconds. A pod that it asks for takes load after START_S, its load time and a period of the readiness probe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SYNC_S = 15
"""The controller's period (--horizontal-pod-autoscaler-sync-period)."""
WINDOW_S = 30
"""What the load is averaged over: two periods of the metrics server, or of Prometheus' scrapes."""
TOLERANCE = 0.1
"""--horizontal-pod-autoscaler-tolerance"""
START_S = 10.0
"""To schedule a pod and start its container, with the image on the node."""
READINESS_S = 5.0
MOST_PERCENT, MOST_PODS = 100, 4
"""Of the rendered scale-up policies, each 15 s; the larger one counts."""
SETTLE_S = 120


@dataclass(frozen=True)
class Ramp:
    """Load that rises evenly from one rate to another."""

    from_rps: float
    to_rps: float
    seconds: float

    def at(self, second: float) -> float:
        share = min(1.0, max(0.0, second / self.seconds)) if self.seconds else float(second >= 0)
        return self.from_rps + (self.to_rps - self.from_rps) * share


@dataclass(frozen=True)
class Followed:
    """How a ramp was followed: most requests a second that a ready pod met, and how many pods there were at the end."""

    worst_rps: float
    pods: int


def lag_s(ready_s: float) -> float:
    """Return the seconds from a rise of the load to a pod that takes some of it, at worst."""
    return WINDOW_S / 2 + SYNC_S + START_S + ready_s + READINESS_S


def follow(ramp: Ramp, target_rps: float, ready_s: float, fewest: int = 1, tolerance: float = TOLERANCE) -> Followed:
    """Return how an autoscaler with a target follows a ramp that it was in balance with before."""
    pods = max(fewest, math.ceil(ramp.from_rps / target_rps))
    ready, worst = pods, ramp.from_rps / pods
    coming: list[tuple[float, int]] = []
    start = START_S + ready_s + READINESS_S
    for second in range(int(ramp.seconds + SETTLE_S + start)):
        while coming and coming[0][0] <= second:
            ready += coming.pop(0)[1]
        worst = max(worst, ramp.at(second) / ready)
        if second % SYNC_S:
            continue
        seen = sum(ramp.at(second - back) for back in range(WINDOW_S)) / WINDOW_S
        ratio = seen / (ready * target_rps)
        if ratio <= 1 + tolerance:
            continue
        wanted = min(math.ceil(ready * ratio), pods + max(MOST_PODS, math.ceil(pods * MOST_PERCENT / 100)))
        if wanted > pods:
            coming.append((second + start, wanted - pods))
            pods = wanted
    return Followed(worst, pods)


def target_for(ramp: Ramp, holds_rps: float, ready_s: float, fewest: int = 1) -> float:
    """Return the highest target at which no ready pod meets more than `holds_rps` while the ramp is followed."""
    low, high = holds_rps / 100, holds_rps
    if follow(ramp, low, ready_s, fewest).worst_rps > holds_rps:
        return 0.0
    while high / low > 1.002:
        middle = math.sqrt(low * high)
        if follow(ramp, middle, ready_s, fewest).worst_rps <= holds_rps:
            low = middle
        else:
            high = middle
    return low
