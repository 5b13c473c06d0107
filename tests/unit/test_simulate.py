"""The simulator against theory, and against the rules of the scheduler one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from launchpad.spec import BatchQueue
from launchpad.tune import simulate as simulator
from launchpad.tune.simulate import Arrivals, Host, Queue, ServiceTimes, poisson_arrivals, simulate

ONE_BY_ONE = BatchQueue(max_batch_size=1, max_enqueued_batches=1_000_000)
SECOND = ServiceTimes(np.array([0.0, 1.0]))
COUNT = 400_000


def linear(alpha_s: float, tau_s: float, largest: int = 4000) -> np.ndarray:
    return tau_s + alpha_s * np.arange(largest + 1)


def run(batching, times_s, *, threads=1, sizes=1, batch_s=(0.0, 1.0, 1.0), host=None):
    """Simulate single arrivals with a batch time of a second, and return the result."""
    queue = Queue(batching, ServiceTimes(np.asarray(batch_s)))
    return simulate([queue], threads, host or Host(), Arrivals.of(np.asarray(times_s, float), sizes))


# --- theory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_one_server_with_constant_service_waits_as_pollaczek_and_khinchin_say(load):
    result = simulate([Queue(ONE_BY_ONE, SECOND)], 1, Host(), poisson_arrivals(load, COUNT, seed=1))
    assert result.latency_s.mean() == pytest.approx(1 + load / (2 * (1 - load)), rel=0.03)
    assert result.thread_use == pytest.approx(load, rel=0.01)


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_one_server_with_exponential_service_is_m_m_1(load):
    noise = np.random.default_rng(2).exponential(1.0, 100_000)
    times = ServiceTimes(SECOND.batch_s, noise=noise / noise.mean())
    result = simulate([Queue(ONE_BY_ONE, times)], 1, Host(), poisson_arrivals(load, COUNT, seed=1))
    assert result.latency_s.mean() == pytest.approx(1 / (1 - load), rel=0.05)
    assert np.percentile(result.latency_s, 99) == pytest.approx(math.log(100) / (1 - load), rel=0.08)


def test_two_servers_with_exponential_service_wait_as_erlang_says():
    load = 0.7
    noise = np.random.default_rng(2).exponential(1.0, 100_000)
    times = ServiceTimes(SECOND.batch_s, noise=noise / noise.mean())
    result = simulate([Queue(ONE_BY_ONE, times)], 2, Host(), poisson_arrivals(2 * load, COUNT, seed=1))
    assert result.latency_s.mean() == pytest.approx(1 / (1 - load**2), rel=0.03)


def test_work_that_shares_a_processor_takes_as_long_as_m_g_1_with_processor_sharing():
    """Its mean time is that of M/M/1 whatever the distribution of the work; here it is constant."""
    load = 0.6
    host = Host(cores=1)
    result = simulate([Queue(ONE_BY_ONE, SECOND)], 64, host, poisson_arrivals(load, COUNT, seed=1))
    assert result.latency_s.mean() == pytest.approx(1 / (1 - load), rel=0.04)
    assert result.processor_use == pytest.approx(load, rel=0.01)


def inoue(rate: float, alpha: float, tau: float) -> float:
    """The upper bound of the mean latency of a server that always takes all that waits, with batch time alpha b + tau.

    Inoue, Queueing Analysis of GPU-Based Inference Servers with Dynamic Batching, arXiv 1912.06322, theorem 2.
    """
    load = rate * alpha
    first = (alpha + tau) / (2 * (1 - load)) * (1 + 2 * rate * tau + (1 - rate * tau) / (1 + load))
    second = 1.5 * tau / (1 - load) + alpha / 2 * (load + 2) / (1 - load**2)
    return min(first, second)


@pytest.mark.parametrize("load", [0.02, 0.2, 0.5, 0.8, 0.95])
def test_the_mean_latency_of_linear_batches_is_just_under_inoues_bound(load):
    alpha, tau = 1e-3, 4e-3
    rate = load / alpha
    everything = BatchQueue(max_batch_size=4000, max_enqueued_batches=1000)
    queue = Queue(everything, ServiceTimes(linear(alpha, tau)))
    mean = simulate([queue], 1, Host(), poisson_arrivals(rate, COUNT, seed=3)).latency_s.mean()
    assert 0.88 * inoue(rate, alpha, tau) < mean < 1.01 * inoue(rate, alpha, tau)


# --- rules of the scheduler -----------------------------------------------------------------------------------


def test_a_free_thread_takes_what_there_is():
    result = run(BatchQueue(max_batch_size=4), [0, 0.1, 0.2, 0.3])
    assert result.batch_rows.tolist() == [1, 3]
    assert result.latency_s == pytest.approx([1.0, 1.9, 1.8, 1.7])


def test_a_batch_waits_for_its_timeout_and_no_longer():
    result = run(BatchQueue(max_batch_size=4, batch_timeout_micros=500_000), [0, 0.2, 3.0])
    assert result.batch_begun_s == pytest.approx([0.5, 3.5])
    assert result.batch_rows.tolist() == [2, 1]


def test_a_full_batch_does_not_wait():
    result = run(BatchQueue(max_batch_size=2, batch_timeout_micros=500_000), [0, 0.2])
    assert result.batch_begun_s == pytest.approx([0.2])


def test_more_batches_than_may_be_enqueued_are_refused():
    result = run(BatchQueue(max_batch_size=1, max_enqueued_batches=2), [0, 0.1, 0.2, 0.3, 0.4])
    assert np.isnan(result.latency_s).tolist() == [False, False, False, True, True]
    assert result.refused == 2


def test_a_request_larger_than_a_batch_is_refused_unless_it_is_split():
    assert run(BatchQueue(max_batch_size=2), [0], sizes=3).refused == 1
    split = BatchQueue(max_batch_size=4, enable_large_batch_splitting=True, max_execution_batch_size=2)
    result = run(split, [0], sizes=3)
    assert result.batch_rows.tolist() == [2, 1]
    assert result.latency_s == pytest.approx([2.0])


def test_a_split_request_fills_the_open_batch_first():
    split = BatchQueue(max_batch_size=8, enable_large_batch_splitting=True, max_execution_batch_size=4)
    result = run(split, [0, 0.1, 0.2], sizes=[1, 3, 6], batch_s=[0.0, 1, 1, 1, 1])
    assert result.batch_rows.tolist() == [1, 4, 4, 1]


def test_batches_are_run_at_the_allowed_size_that_they_are_padded_to():
    sized = BatchQueue(max_batch_size=8, allowed_batch_sizes=(2, 8))
    result = run(sized, [0, 100], sizes=[1, 3], batch_s=np.arange(9))
    assert result.latency_s == pytest.approx([2, 8])


def test_threads_serve_the_queues_in_turn():
    queues = [Queue(BatchQueue(max_batch_size=1, max_enqueued_batches=9), SECOND) for _ in range(2)]
    arrivals = Arrivals.of(np.array([0, 0.1, 0.2, 0.3]), 1, np.array([0, 0, 0, 1]))
    result = simulate(queues, 1, Host(), arrivals)
    assert result.latency_s == pytest.approx([1.0, 2.9, 3.8, 1.7])


def test_unbatched_requests_run_beside_each_other_up_to_the_request_threads():
    host = Host(front_threads=2, request_threads=2)
    assert run(None, [0, 0, 0], host=host).latency_s == pytest.approx([1, 1, 2])


def test_unbatched_requests_share_the_cores():
    host = Host(cores=1, front_threads=2)
    assert run(None, [0, 0], host=host).latency_s == pytest.approx([2, 2])


def test_a_batch_that_keeps_several_cores_busy_leaves_less_to_others():
    host = Host(cores=2, batch_cores=2)
    assert run(ONE_BY_ONE, [0], threads=2, host=host).latency_s == pytest.approx([1])
    assert run(ONE_BY_ONE, [0, 0], threads=2, host=host).latency_s == pytest.approx([2, 2])


def test_an_event_loop_reads_what_has_come_before_it_forms_a_batch_and_answers_it_together():
    host = Host(event_loop=True, inline_s=9.0)
    times = ServiceTimes(np.array([0.0, 1, 1, 1, 1]), read_s=0.1, answer_s=0.2)
    queue = Queue(BatchQueue(max_batch_size=4), times)
    result = simulate([queue], 1, host, Arrivals.of(np.array([0, 0.05, 0.08])))
    assert result.batch_rows.tolist() == [3]
    assert result.latency_s == pytest.approx([1.9, 1.85, 1.82])  # answered together


def looped(batching, times_s, **host):
    """Simulate an event loop that takes 0.1 s to read and 0.2 s to answer, with batches of a second."""
    times = ServiceTimes(np.array([0.0, 1, 1, 1, 1]), read_s=0.1, answer_s=0.2)
    return simulate([Queue(batching, times)], 1, Host(event_loop=True, **host), Arrivals.of(np.array(times_s, float)))


def test_an_event_loop_answers_a_batch_before_it_reads_on():
    result = looped(BatchQueue(max_batch_size=4), [0, 0.05, 0.5], inline_s=9.0)
    assert result.latency_s == pytest.approx([1.6, 1.55, 1.6 + 1.3 - 0.5])


def test_what_waits_for_a_request_thread_is_read_as_soon_as_another_is_answered():
    """The third is read between the answers of the first batch, and its timeout begins then."""
    waits = BatchQueue(max_batch_size=4, batch_timeout_micros=1_000_000)
    result = looped(waits, [0, 0, 0, 0], inline_s=9.0, request_threads=2)
    assert result.latency_s == pytest.approx([2.7, 2.7, 4.8, 4.8])


def test_a_free_thread_gets_the_next_batch_before_the_last_is_answered():
    assert looped(ONE_BY_ONE, [0, 0]).latency_s == pytest.approx([1.4, 2.4])


def test_an_event_loop_takes_for_short_what_is_of_the_magnitude_of_short_runs():
    work, noise = np.arange(10.0), np.array([0.9, 1.1])
    assert simulator.short(work, noise, np.full(10, 3.5)).tolist() == [rows < 4 for rows in range(10)]
    assert simulator.short(work, noise, np.full(10, 3.7)).tolist() == [rows < 8 for rows in range(10)]


def test_an_event_loop_takes_a_batch_for_short_by_how_many_requests_it_is_for():
    """A batch of two rows takes 1.5 s; the limit is 0.8 s a request, however many rows it has."""
    times = ServiceTimes(np.array([0.0, 1.0, 1.5]))
    host = Host(event_loop=True, inline_request_s=0.8, thread_s=9.0)
    pair = Arrivals.of(np.array([0.0, 0.0]))
    two = BatchQueue(max_batch_size=2, batch_timeout_micros=1_000_000)
    assert simulate([Queue(two, times)], 1, host, pair).latency_s == pytest.approx([1.5, 1.5])
    whole = Arrivals.of(np.array([0.0]), 2)
    assert simulate([Queue(two, times)], 1, host, whole).latency_s == pytest.approx([10.5])


def test_requests_that_are_read_in_one_turn_of_an_event_loop_share_what_the_turn_takes():
    """The second and third come while the first is worked on, which has a turn for itself."""
    queue = Queue(None, ServiceTimes(np.array([0.0, 1.0])))
    host = Host(event_loop=True, inline_s=10.0, turn_read_s=0.3, turn_answer_s=0.2)
    result = simulate([queue], 1, host, Arrivals.of(np.array([0, 0.2, 0.3, 9.0])))
    assert result.latency_s == pytest.approx([1.5, 4.0 - 0.2, 4.0 - 0.3, 1.5])


BIT_BY_BIT = Arrivals.of(np.array([1.0, 1.3, 1.6]))
"""While the batch of the first waits for its timeout of a second."""


def test_an_event_loop_that_was_idle_reads_in_a_turn_of_its_own():
    """Each of the three; they are answered in one."""
    queue = Queue(BatchQueue(max_batch_size=4, batch_timeout_micros=1_000_000), SECOND)
    host = Host(event_loop=True, inline_s=10.0, turn_read_s=0.1, turn_answer_s=0.2)
    once = simulate([queue], 1, host, BIT_BY_BIT)
    assert once.latency_s == pytest.approx(0.1 + 1.0 + 3.0 + 0.2 - np.array([0.0, 0.3, 0.6]))
    assert once.batch_begun_s == pytest.approx([2.1])
    length_s = 1.0 + once.latency_s[0]
    assert simulate([queue], 1, replace(host, cores=1), BIT_BY_BIT).processor_use * length_s == pytest.approx(3.5)


def test_what_an_event_loop_saves_on_many_requests_it_saves_on_those_that_it_reads_together():
    times = ServiceTimes(np.array([0.0, 1.0, 1.0, 1.0]), answer_s=0.5, task_s=np.array([0.0, 0.0, -0.1, -0.2]))
    host = Host(event_loop=True, inline_s=10.0)
    while_it_runs = Arrivals.of(np.array([0.0, 0.2, 0.3, 0.4]))
    together = simulate([Queue(BatchQueue(max_batch_size=3), times)], 1, host, while_it_runs)
    assert together.batch_rows.tolist() == [1, 3]
    assert together.latency_s == pytest.approx([1.5, *(1.5 + 1.0 + 3 * 0.3 - np.array([0.2, 0.3, 0.4]))])
    waits = BatchQueue(max_batch_size=3, batch_timeout_micros=1_000_000)
    apart = simulate([Queue(waits, times)], 1, host, BIT_BY_BIT)
    assert apart.latency_s == pytest.approx(0.6 + 1.0 + 3 * 0.5 - np.array([0.0, 0.3, 0.6]))


def test_what_a_request_by_itself_costs_more_passes_in_part_while_it_is_read():
    """For each of a batch that come by themselves; for the first alone of those that are read in one turn."""
    costs = np.array([0.0, 0.4, 0.4, 0.4])
    times = ServiceTimes(np.array([0.0, 1.0, 1.0, 1.0]), answer_s=0.5, task_s=costs)
    queue, partly = (Queue(BatchQueue(max_batch_size=3), one) for one in (times, replace(times, lone_s=0.3)))
    host = Host(event_loop=True, inline_s=10.0)
    alone, together = Arrivals.of(np.array([1.0, 9.0])), Arrivals.of(np.array([0.0, 0.4, 0.5, 0.6]))
    for arrivals in (alone, together):
        once, parted = (simulate([one], 1, host, arrivals) for one in (queue, partly))
        assert parted.latency_s == pytest.approx(once.latency_s)
    waits = BatchQueue(max_batch_size=3, batch_timeout_micros=1_000_000)
    once, parted = (simulate([Queue(waits, one.times)], 1, host, BIT_BY_BIT) for one in (queue, partly))
    assert once.latency_s - parted.latency_s == pytest.approx(np.full(3, 3 * 0.3 - 0.3))
    unbatched = [simulate([Queue(None, one.times)], 1, host, alone).latency_s for one in (queue, partly)]
    assert unbatched[0] == pytest.approx(unbatched[1])


@pytest.mark.parametrize(
    ("batching", "host"),
    [
        (None, Host()),
        (None, Host(event_loop=True, inline_s=10.0)),
        (None, Host(event_loop=True)),
        (ONE_BY_ONE, Host()),
        (ONE_BY_ONE, Host(event_loop=True, inline_s=10.0)),
        (ONE_BY_ONE, Host(event_loop=True)),
    ],
)
def test_a_run_takes_longer_the_longer_the_last_one_is_ago(batching, host):
    """Not right after another; a second later by 1 - 1/e of what a run takes besides that has long had no other."""
    queue = Queue(batching, ServiceTimes(np.array([0.0, 1.0]), cold_s=np.array([0.0, 0.5]), cool_s=1.0))
    latency_s = simulate([queue], 1, host, Arrivals.of(np.array([0.0, 1.0, 3.0, 90.0]))).latency_s
    assert latency_s == pytest.approx([1.0, 1.0, 1.0 + 0.5 * (1 - np.exp(-1)), 1.5])


def test_requests_take_longer_while_many_are_in_flight():
    """When the second is read, the third is in flight, too; when the third is, the second has been answered, but an
    event loop sends both answers together."""
    queue = Queue(None, ServiceTimes(np.array([0.0, 1.0])))
    crowded = Host(inline_s=10.0, request_threads=1, crowd=1, crowd_s=1.0)
    arrivals = Arrivals.of(np.array([0.0, 0.0, 0.0, 20.0]))
    assert simulate([queue], 1, crowded, arrivals).latency_s == pytest.approx([1.0, 3.0, 4.0, 1.0])
    loop = replace(crowded, event_loop=True)
    assert simulate([queue], 1, loop, arrivals).latency_s == pytest.approx([1.0, 5.0, 5.0, 1.0])


def test_a_batch_that_an_event_loop_hands_to_a_thread_takes_longer():
    queue = Queue(ONE_BY_ONE, SECOND)
    host = Host(event_loop=True, inline_s=0.1, thread_s=0.25)
    assert simulate([queue], 1, host, Arrivals.of(np.array([0.0]))).latency_s == pytest.approx([1.25])


def test_a_load_generator_takes_its_time_and_its_share_of_the_processor():
    host = Host(send_s=0.5, receive_s=0.25)
    result = run(ONE_BY_ONE, [0, 0], host=host)
    assert result.latency_s == pytest.approx([1.75, 2.75])
    assert run(ONE_BY_ONE, [0], host=Host(cores=1, send_s=0.5)).generator_use == pytest.approx(1 / 3)


def test_who_had_nothing_to_do_begins_later_and_uses_no_processor_meanwhile():
    """The generator is roused to send and to receive, the front worker to read and to answer."""
    host = Host(cores=2, send_s=0.5, receive_s=0.25, rouse_s=0.1)
    once = run(ONE_BY_ONE, [1.0], host=host)
    assert once.latency_s == pytest.approx([0.5 + 1.0 + 0.25 + 4 * 0.1])
    length_s = 1.0 + once.latency_s[0]
    assert once.processor_use * 2 * length_s == pytest.approx(1.0)
    assert once.generator_use * length_s == pytest.approx(0.75)


def test_a_timeout_is_noticed_when_an_idle_thread_looks_again():
    """TensorFlow's batch threads look once a millisecond; a batch whose time has come waits for the next look."""
    waits = BatchQueue(max_batch_size=4, batch_timeout_micros=2000)
    times = np.arange(1, 2000) * 0.0157
    exact = run(waits, times, batch_s=[0, 1e-4], host=Host()).latency_s
    polled = run(waits, times, batch_s=[0, 1e-4], host=Host(poll_s=0.001)).latency_s
    assert exact.mean() == pytest.approx(0.0021, rel=0.01)
    assert polled.min() > 0.0021 and polled.max() <= 0.0031 + 1e-9
    assert polled.mean() == pytest.approx(0.0026, rel=0.05)


# --- what it is given -----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run():
    times = ServiceTimes(SECOND.batch_s, noise=np.array([0.5, 1.5]))
    arrivals = poisson_arrivals(0.5, 1000)
    first, again, other = (
        simulate([Queue(ONE_BY_ONE, times)], 1, Host(), arrivals, seed).latency_s.tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_each_queue_has_a_noise_of_its_own():
    queues = [Queue(ONE_BY_ONE, ServiceTimes(SECOND.batch_s, noise=np.array([factor]))) for factor in (1.0, 3.0)]
    arrivals = Arrivals.of(np.array([0.0, 10.0]), 1, np.array([0, 1]))
    assert simulate(queues, 1, Host(), arrivals).latency_s == pytest.approx([1, 3])


@pytest.mark.parametrize(
    "arrivals",
    [
        Arrivals.of(np.array([])),
        Arrivals.of(np.array([1.0, 0.5])),
        Arrivals.of(np.array([1.0]), 0),
        Arrivals.of(np.array([1.0]), 1, 1),
    ],
)
def test_arrivals_that_are_none_are_refused(arrivals):
    with pytest.raises(ValueError):
        simulate([Queue(ONE_BY_ONE, SECOND)], 1, Host(), arrivals)


def test_a_machine_that_slows_down_delays_those_who_come_meanwhile():
    arrivals = poisson_arrivals(100, 20_000, seed=1)
    queue = Queue(None, ServiceTimes(np.array([0.0, 0.001])))
    even = Host(cores=2, event_loop=True, inline_s=1.0)
    stalling = np.where(np.arange(20) < 4, 0.01, 1.0)  # next to nothing for 20 ms of each 100
    disturbed = simulate([queue], 1, replace(even, paces=stalling, pace_s=0.005), arrivals)
    # 5 ms or more take those who come in the first 15 ms, in the next two or three behind those who wait, and who was
    # at work when it began: 15 + 3 + 1 of 100
    assert simulate([queue], 1, even, arrivals).missed_share(0.005) == 0
    assert disturbed.missed_share(0.005) == pytest.approx(0.19, abs=0.015)
    # a long run is as long as the pace makes it: here 4 of 5 parts of a second are given
    whole = Arrivals.of(np.array([0.0]))
    second = simulate([Queue(None, ServiceTimes(np.array([0.0, 1.0])))], 1, replace(even, inline_s=2.0), whole)
    slowed = simulate(
        [Queue(None, ServiceTimes(np.array([0.0, 1.0])))],
        1,
        replace(even, inline_s=2.0, paces=stalling, pace_s=0.005),
        whole,
    )
    assert second.latency_s[0] == pytest.approx(1.0)
    assert slowed.latency_s[0] == pytest.approx(1 / (0.8 + 0.2 * 0.01), rel=0.03)
