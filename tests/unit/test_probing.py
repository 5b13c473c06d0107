"""Who is to blame for a rate that does not hold: the server, or the generator that asked too late."""

from __future__ import annotations

from array import array

import pytest

from launchpad.errors import DeclarationError
from launchpad.loadtest.capacity import Probe
from launchpad.loadtest.latencies import packed
from launchpad.loadtest.probing import _Observer, show, traffic_of
from launchpad.stage import Context
from tests.conftest import MINIMAL

LATE = {"cpu": 0.6, "why": "requests were sent 40.0 ms late at p99"}
FULL = {"cpu": 0.99, "why": "a generator process took 99% of a core"}
SOON, LONG = 2_000, 300_000


def second(number: int, response_us: int, service_us: int, held: int = 0, failed: int = 0) -> dict:
    response, service = (packed(array("i", [latency] * (100 - failed))) for latency in (response_us, service_us))
    line = {
        "answered": 100 - failed,
        "held": held,
        "failures": [["HTTP 503", "", failed]] if failed else [],
        "latencies": {"response": response, "service": service},
    }
    return {"second": number, "last": False, "lines": {"a line": line}}


def observed(**of_second) -> _Observer:
    observer = _Observer(100_000)
    for number in range(5):
        observer(second(number, **of_second))
    return observer


@pytest.mark.parametrize(
    ("of_second", "health", "blamed"),
    [
        ({"response_us": LONG, "service_us": SOON}, LATE, "generator"),
        ({"response_us": LONG, "service_us": LONG}, LATE, "server"),
        ({"response_us": LONG, "service_us": SOON, "held": 50}, LATE, "server"),
        ({"response_us": LONG, "service_us": SOON, "failed": 50}, LATE, "server"),
        ({"response_us": LONG, "service_us": LONG}, FULL, "generator"),
    ],
)
def test_a_late_generator_is_to_blame_unless_the_server_misses_by_itself(of_second, health, blamed):
    observer = observed(**of_second)

    assert observer.misses.clear is False
    assert observer.in_the_way(health) == (health["why"] if blamed == "generator" else "")


def test_a_server_that_answers_nothing_any_more_does_not_hold():
    """What is never answered is in no second, only in the part that follows the last."""
    observer = _Observer(100_000)
    for number in (0, 1, 2):
        observer(second(number, SOON, SOON))
    assert observer.misses.clear is None
    lines = {"a line": {"answered": 0, "held": 0, "failures": [["no answer: not by the end", "", 50]], "latencies": {}}}
    observer({"second": 12, "last": True, "lines": lines})
    assert (observer.misses.sent, observer.failures) == (250, 50) and observer.misses.clear is False


def test_a_probe_in_which_nothing_was_sent_does_not_hold():
    assert not Probe(10.0, 12.0, sent=0, share=0.0, low=0.0, high=1.0, p50_ms=None, p99_ms=None).holds


def test_a_second_counts_once_however_many_processes_hand_it_over():
    """Requests that wait together miss together, whichever process sent them."""
    observer = _Observer(100_000, processes=4)
    for number in (1, 2):
        for _ in range(4):
            observer(second(number, LONG if number == 1 else SOON, SOON))
    assert observer.misses.seconds == [(400, 400), (400, 0)] and observer.misses.clear is None


def test_failures_are_counted_apart_from_late_answers():
    assert observed(response_us=SOON, service_us=SOON, failed=3).failures == 4 * 3


def test_the_first_second_does_not_count():
    observer = _Observer(100_000)
    assert observer(second(0, LONG, LONG))

    assert observer.misses.sent == observer.of_server.sent == 0


def test_a_protocol_that_is_off_is_not_searched_with(declare):
    context = Context(declare(MINIMAL + "serving: {ports: {rest: 0}}\n"))
    assert [line.protocol for line in traffic_of(context, "tiny", None, "grpc")] == ["grpc"]
    with pytest.raises(DeclarationError, match="rest is off"):
        traffic_of(context, "tiny", None, "rest")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("option", ["p99_ms", "start_rps"])
def test_a_number_that_is_none_is_refused_before_anything_is_measured(declare, option, value):
    with pytest.raises(DeclarationError, match="is none"):
        show(Context(declare()), "tiny", None, "rest", **{"p99_ms": 10.0, option: value})


def test_a_protocol_that_there_is_not_is_refused(declare):
    with pytest.raises(DeclarationError, match="there is no protocol 'foo'") as raised:
        show(Context(declare()), "tiny", None, "foo", 10.0)
    assert "rest_columns" in raised.value.problems[0].fix
