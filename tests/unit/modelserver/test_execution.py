"""Which runs take place on the event loop."""

from __future__ import annotations

import pytest

from launchpad.modelserver.execution import ServiceTimes


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> ServiceTimes:
    monkeypatch.setattr(ServiceTimes, "INLINE_LIMIT_S", 0.001)
    monkeypatch.setattr(ServiceTimes, "INLINE_REQUEST_S", 0.0001)
    return ServiceTimes()


def test_a_run_is_short_once_several_of_its_magnitude_were(times: ServiceTimes) -> None:
    assert not times.expects_short(3)
    for _ in range(8):
        assert not times.expects_short(3)
        times.add(3, 0.0009)
    assert times.expects_short(3)
    assert not times.expects_short(4)


def test_the_shortest_of_the_last_runs_counts(times: ServiceTimes) -> None:
    for _ in range(8):
        times.add(3, 0.0009)
    for _ in range(50):
        times.add(3, 0.5)
    assert times.expects_short(3)
    for _ in range(64):
        times.add(3, 0.5)
    assert not times.expects_short(3)


def test_a_run_for_many_requests_may_take_as_long_as_the_work_on_them(times: ServiceTimes) -> None:
    for _ in range(8):
        times.add(7, 0.0035)
    assert not times.expects_short(7)
    assert not times.expects_short(7, 34)
    assert times.expects_short(7, 36)
