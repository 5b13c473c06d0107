"""Each shape is the curve that its name says, between its low and its high."""

from __future__ import annotations

import numpy as np
import pytest

from launchpad.loadtest.shapes import curve
from launchpad.spec import LoadShape

KINDS = ("constant", "soak", "ramp", "steps", "spike", "wave")


def at(shape: LoadShape | None, *moments_s: float) -> list[float]:
    """Return the load at moments of a run of 100 s whose factor 1 is 50."""
    found = curve(shape, 50, 100)
    return np.interp(moments_s, found.times_s, found.rates_rps).round(6).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_every_shape_covers_the_run_and_stays_between_low_and_high(kind):
    found = curve(LoadShape(kind=kind, low=0.1, high=1.5), 50, 100)
    assert found.times_s[0] == 0 and found.times_s[-1] == pytest.approx(100)
    assert all(before < after for before, after in zip(found.times_s, found.times_s[1:], strict=False))
    assert min(found.rates_rps) >= 5 - 1e-9 and max(found.rates_rps) == pytest.approx(75)


@pytest.mark.parametrize("shape", [None, LoadShape(kind="constant"), LoadShape(kind="soak")])
def test_without_change_the_load_is_the_same_all_along(shape):
    assert at(shape, 0, 37, 100) == [50, 50, 50]


def test_a_ramp_rises_evenly():
    assert at(LoadShape(kind="ramp", low=0.2), 0, 50, 100) == [10, 30, 50]


def test_steps_are_equal_in_height_and_length():
    shape = LoadShape(kind="steps", low=0.2, high=1.0, steps=5)
    assert at(shape, 1, 19, 21, 39, 41, 61, 81, 99) == [10, 10, 20, 20, 30, 40, 50, 50]


def test_a_spike_is_the_middle_tenth():
    assert at(LoadShape(kind="spike", low=0.2), 1, 44.9, 45.1, 54.9, 55.1, 99) == [10, 10, 50, 50, 10, 10]


def test_a_wave_is_a_day_from_night_to_noon_to_night():
    assert at(LoadShape(kind="wave", low=0.2), 0, 25, 50, 75, 100) == [10, 30, 50, 30, 10]
