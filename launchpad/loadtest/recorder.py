"""What a generator process keeps of its requests, and hands over once a second.

Three times of a request are known: when it was due, when it was sent, when its answer had come. Response time counts
from due, service time from sent; the send lag between them is the generator's own. In a closed loop a request is due
when its user gets round to it, so the three are one. A request that was held back because all connections were taken
has no send lag: it is the server that did not keep up, and its response time says so. Refused and wrong answers are
counted by kind, their latencies apart from those of right answers.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from launchpad.loadtest.latencies import append, empty, packed
from launchpad.runfolder import FAILED, LAG, RESPONSE, SERVICE


@dataclass
class _Line:
    """One line of traffic since the last hand-over."""

    latencies: dict[str, array[int]] = field(
        default_factory=lambda: {kind: empty() for kind in (RESPONSE, SERVICE, LAG, FAILED)}
    )
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    answered: int = 0
    held: int = 0


class Recorder:
    """Counts requests as they end. `open_loop`: requests are due at times of their own."""

    def __init__(self, lines: list[str], open_loop: bool) -> None:
        self._names = lines
        self._open_loop = open_loop
        self._lines = {name: _Line() for name in lines}

    def answered(self, line: str, due_ns: int, sent_ns: int, ended_ns: int, held: bool = False) -> None:
        """Count a right answer. `held`: no connection was free when the request was due."""
        kept = self._lines[line]
        kept.answered += 1
        append(kept.latencies[RESPONSE], ended_ns - due_ns)
        if self._open_loop:
            append(kept.latencies[SERVICE], ended_ns - sent_ns)
            if held:
                kept.held += 1
            else:
                append(kept.latencies[LAG], sent_ns - due_ns)

    def failed(self, line: str, kind: str, example: str, due_ns: int, ended_ns: int) -> None:
        """Count a failure of a kind (`HTTP 503`, `wrong answer`, ...), with an example of what came back."""
        kept = self._lines[line]
        kept.failures[kind, example[:200]] += 1
        append(kept.latencies[FAILED], ended_ns - due_ns)

    def take(self) -> dict[str, Any]:
        """Return what came since the last call, as JSON has it, by line: counts, failures, packed latencies by kind."""
        taken, self._lines = self._lines, {name: _Line() for name in self._names}
        return {
            name: {
                "answered": line.answered,
                "held": line.held,
                "failures": [[kind, example, many] for (kind, example), many in line.failures.items()],
                "latencies": {kind: packed(values) for kind, values in line.latencies.items() if values},
            }
            for name, line in taken.items()
        }
