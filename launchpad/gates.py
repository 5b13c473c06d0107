"""A gate: a measured value held against a limit. Evaluated from recorded data, never assumed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Gate:
    """`value` must be at least, or at most, `limit`. A gate without a value did not run; `why` says why."""

    name: str
    value: float | None
    relation: Literal[">=", "<="]
    limit: float | None
    unit: str = ""
    why: str = ""

    @property
    def passed(self) -> bool | None:
        """True or False; None when the gate did not run or has no limit."""
        if self.value is None or self.limit is None:
            return None
        return self.value >= self.limit if self.relation == ">=" else self.value <= self.limit

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}

    @property
    def measured(self) -> str:
        """The value for people, or why there is none."""
        return f"{self.value:.4g} {self.unit}".strip() if self.value is not None else f"not run: {self.why}"

    @property
    def required(self) -> str:
        words = {">=": "at least", "<=": "at most"}[self.relation]
        return f"{words} {self.limit:g} {self.unit}".strip() if self.limit is not None else "no limit declared"
