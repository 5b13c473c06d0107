"""A gate is a measured value against a limit; without a value it did not run."""

from __future__ import annotations

import math

import pytest

from launchpad.errors import DeclarationError, EnvironmentFault, GateFailed, Problem
from launchpad.gates import Gate


@pytest.mark.parametrize(
    ("value", "relation", "limit", "passed"),
    [
        (0.95, ">=", 0.95, True),
        (0.949, ">=", 0.95, False),
        (100.0, "<=", 100.0, True),
        (100.1, "<=", 100.0, False),
        (0.0, "<=", 0.0, True),
        (math.nan, "<=", 1.0, False),
        (math.nan, ">=", 1.0, False),
        (None, ">=", 0.95, None),
        (0.5, ">=", None, None),
    ],
)
def test_a_gate_passes_fails_or_has_not_run(value, relation, limit, passed):
    gate = Gate("accuracy", value, relation, limit, why="no data")
    assert gate.passed is passed
    assert gate.as_dict()["passed"] is passed


def test_a_gate_says_what_was_measured_and_what_is_required():
    gate = Gate("p99", 12.3456, "<=", 100.0, "ms")
    assert (gate.measured, gate.required) == ("12.35 ms", "at most 100 ms")
    assert Gate("p99", None, "<=", None, "ms", "nobody asked").measured == "not run: nobody asked"
    assert Gate("p99", None, ">=", None).required == "no limit declared"


def test_errors_know_their_exit_codes_and_their_place():
    assert (GateFailed.exit_code, DeclarationError.exit_code, EnvironmentFault.exit_code) == (1, 2, 3)
    error = DeclarationError([Problem("is wrong", "a.yaml:3", "do this"), Problem("too")])
    assert str(error) == "a.yaml:3: is wrong\n    do this\ntoo"
