"""The simulator's event loop, compiled. `simulate` is its one caller, and says what the quantities mean.

Work that shares the processors progresses at one pace, so one clock counts finished work: an end of work is a fixed
point on it, however the pace changes in between, by more work or by what the machine gives (the virtual time of
processor sharing; Kleinrock, Queueing Systems II, 1976, section 4.4).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

READ, ANSWER, DONE, LOOK, RUN, ANSWERS, SINGLE = range(7)
"""What a front worker does: read a request, answer one, answer a batch that a thread ran, look for batches to start,
run a batch itself, answer it, run an unbatched request itself."""

LIMIT, LARGEST, MOST, SPLIT, OFF, PARTS_AT, HEAD, TAIL, PART_END, FLAG = range(10)
"""Columns of a queue's numbers: most rows executed, most rows of a request, most batches enqueued, whether large
requests are split, whether it is unbatched; where its lists begin; its first and its open batch; the end of its parts;
whether TensorFlow's scheduler has given notice of a batch that may run."""

FIRST, ROWS, QUEUE = range(3)
"""Columns of a batch's numbers; its parts end where the next batch's begin, or at `part_ends`."""


@njit(cache=True)
def _open_batch(q: Any, k: int, order: Any, batches: Any, counts: Any) -> None:
    b = counts[0]
    counts[0] = b + 1
    batches[b, FIRST] = q[k, PART_END]
    batches[b, ROWS] = 0
    batches[b, QUEUE] = k
    q[k, TAIL] += 1
    order[q[k, PARTS_AT] + q[k, TAIL]] = b


@njit(cache=True)
def _enqueue(
    q: Any,
    k: int,
    request: int,
    size: int,
    now: float,
    order: Any,
    batches: Any,
    started: Any,
    part_ends: Any,
    parts: Any,
    missing: Any,
    counts: Any,
) -> bool:
    """Put a request into the open batch of its queue, or the next; tell whether there was room for it."""
    limit, at = q[k, LIMIT], q[k, PARTS_AT]
    tail = batches[order[at + q[k, TAIL]], ROWS]
    enqueued = q[k, TAIL] - q[k, HEAD] + 1
    if size > q[k, LARGEST]:
        return False
    if q[k, SPLIT]:
        if size > (q[k, MOST] - enqueued) * limit + limit - tail:
            return False
    elif tail + size > q[k, LARGEST] and enqueued >= q[k, MOST]:
        return False
    rest, room, first = size, limit - tail, True
    while rest > 0:
        part = rest
        if q[k, SPLIT] and size > limit - tail:
            part = min(rest, room if first and room > 0 else limit)
        first = False
        b = order[at + q[k, TAIL]]
        if batches[b, ROWS] + part > limit:
            _open_batch(q, k, order, batches, counts)
            b = order[at + q[k, TAIL]]
        if batches[b, ROWS] == 0:
            started[b] = now
        parts[at + q[k, PART_END]] = request
        q[k, PART_END] += 1
        batches[b, ROWS] += part
        part_ends[b] = q[k, PART_END]
        missing[request] += 1
        rest -= part
    return True


@njit(cache=True)
def _ready_at(q: Any, k: int, timeouts: Any, order: Any, batches: Any, started: Any) -> float:
    """When the first batch of a queue may run: -inf for at once, inf while there is none."""
    if q[k, OFF]:
        return np.inf
    if q[k, TAIL] > q[k, HEAD]:
        return -np.inf
    b = order[q[k, PARTS_AT] + q[k, TAIL]]
    if batches[b, ROWS] == 0:
        return np.inf
    return -np.inf if batches[b, ROWS] >= q[k, LIMIT] else started[b] + timeouts[k]


@njit(cache=True)
def _next_batch(q: Any, now: float, timeouts: Any, order: Any, batches: Any, started: Any, counts: Any) -> int:
    """Take a batch that may run from the queues in turn; -1 if there is none."""
    total = q.shape[0]
    for _ in range(total):
        k = counts[1]
        counts[1] = k + 1 if k + 1 < total else 0
        if _ready_at(q, k, timeouts, order, batches, started) <= now:
            if q[k, TAIL] == q[k, HEAD]:
                _open_batch(q, k, order, batches, counts)
            b = order[q[k, PARTS_AT] + q[k, HEAD]]
            q[k, HEAD] += 1
            return b
        q[k, FLAG] = 0
    return -1


@njit(cache=True)
def _earliest(q: Any, timeouts: Any, order: Any, batches: Any, started: Any) -> float:
    least = np.inf
    for k in range(q.shape[0]):
        ready = _ready_at(q, k, timeouts, order, batches, started)
        if ready < least:
            least = ready
    return least


@njit(cache=True)
def _factor(factors: Any, ends: Any, k: int) -> float:
    """Draw one of a queue's factors."""
    first = ends[k - 1] if k else 0
    return factors[first] if ends[k] - first == 1 else factors[first + np.random.randint(ends[k] - first)]


@njit(cache=True)
def _run_s(k: int, rows: int, gap: float, work: Any, cold: Any, cool_s: Any, factors: Any, ends: Any) -> float:
    """Draw the seconds of a run that begins `gap` s after the last one of its queue has ended."""
    return (work[k, rows] + cold[k, rows] * -np.expm1(-gap / cool_s[k])) * _factor(factors, ends, k)


GATHERED = 64
"""Answers that an event loop holds back at most."""


@njit(cache=True)
def _send(
    now: float, answers: Any, times: Any, latency: Any, to_client: Any, client_tail: int, finished: int
) -> tuple[int, int]:
    """Send answers to the load generator, if there is one; return how many it was sent, and how many are finished."""
    for r in answers:
        latency[r] -= times[r]
        if len(to_client):
            to_client[client_tail] = 2 * r + 1
            client_tail += 1
        else:
            latency[r] += now
            finished += 1
    return client_tail, finished


FRONT_ENDS, CLIENT_ENDS, JOB_ENDS, ARRIVAL, TIMER, PACE_CHANGES = range(6)
"""What happens next."""


@njit(cache=True)
def _next_event(
    now: float,
    work_clock: float,
    pace: float,
    mode: Any,
    front_end: Any,
    client_busy: bool,
    client_end: float,
    jobs: int,
    job_end: Any,
    due: float,
    timer: float,
) -> tuple[float, int, int]:
    """Return (s until then, what happens, to which worker or job); -1 where nothing will happen any more."""
    wait, what, index = np.inf, -1, 0
    for f in range(mode.shape[0]):
        if mode[f] >= 0 and (front_end[f] - work_clock) / pace < wait:
            wait, what, index = (front_end[f] - work_clock) / pace, FRONT_ENDS, f
    if client_busy and (client_end - work_clock) / pace < wait:
        wait, what = (client_end - work_clock) / pace, CLIENT_ENDS
    for j in range(jobs):
        if (job_end[j] - work_clock) / pace < wait:
            wait, what, index = (job_end[j] - work_clock) / pace, JOB_ENDS, j
    if due - now < wait:
        wait, what = due - now, ARRIVAL
    if timer - now < wait:
        wait, what = timer - now, TIMER
    return wait, what, index


@njit(cache=True)
def _next_look(ready: float, now: float, poll_s: float, idle_since: Any, busy: Any) -> tuple[float, int]:
    """Return (when an idle thread next looks for batches, not before `ready`; which one); inf where none is idle."""
    earliest, found = np.inf, 0
    for thread in range(busy.shape[0]):
        if not busy[thread]:
            looks = max(1.0, np.ceil((ready - idle_since[thread]) / poll_s))
            at = idle_since[thread] + looks * poll_s
            if at <= now:
                at += poll_s
            if at < earliest:
                earliest, found = at, thread
    return earliest, found


@njit(cache=True, nogil=True)
def run(
    times: Any,  # [n] due times in s, increasing
    sizes: Any,  # [n] rows
    queue_of: Any,  # [n]
    q: Any,  # [queues, 10] int64, see above
    timeouts: Any,  # [queues] s
    work: Any,  # [queues, rows + 1] s of a batch of so many rows, padding included
    cold: Any,  # [queues, rows + 1] s that it takes besides where the last one is long ago
    cool_s: Any,  # [queues] s in which most of that comes back
    task_s: Any,  # [queues, rows + 1] s that each request adds to a batch of so many rows
    lone_s: Any,  # [queues] s that the first read in a turn takes besides; all of the turn then less, together
    front_s: Any,  # [queues, 2] s of reading and of answering a request
    factors: Any,  # noise of batch times, all queues' one after the other
    factor_ends: Any,  # [queues]
    cores: float,
    batch_cores: float,  # that a batch on a thread keeps busy
    fronts: int,
    loop: bool,
    inline: Any,  # [queues, rows + 1] bool: whether a batch of so many rows runs on the event loop
    threads: int,
    request_threads: int,
    poll_s: float,
    client_s: Any,  # [2] s of the load generator to send and to receive
    wake_s: Any,  # [2] s that a front worker, and the load generator, take to begin after having been idle
    rouse_s: float,  # s that pass for either then, besides, without a processor
    turn_s: Any,  # [2] s that the first one takes besides to read, and to answer, since answers were sent or when idle
    thread_s: float,  # s that a batch which an event loop hands to a thread takes besides
    crowd: int,  # requests in flight beyond which each that is read takes crowd_s besides
    crowd_s: float,
    paces: Any,  # of the processors, one pace_s after the other and round again, from anywhere
    pace_s: float,
    seed: int,
    latency: Any,  # out [n] s, nan when refused
    queued: Any,  # out [n] s
    rows: Any,  # out [batches] rows
    begun: Any,  # out [batches] s
    totals: Any,  # out: batches, batch threads' busy seconds, processor seconds, generator's, end
) -> None:
    np.random.seed(seed)
    n, total_queues, bound = times.shape[0], q.shape[0], rows.shape[0]
    batches = np.zeros((bound + total_queues + 1, 3), np.int64)
    started = np.zeros(bound + total_queues + 1)
    part_ends = np.zeros(bound + total_queues + 1, np.int64)
    parts = np.zeros(bound + 2 * total_queues, np.int64)
    order = np.zeros(bound + 2 * total_queues, np.int64)
    missing = np.zeros(n, np.int64)
    entered = np.zeros(n)
    counts = np.zeros(2, np.int64)
    for k in range(total_queues):
        q[k, TAIL] = -1
        _open_batch(q, k, order, batches, counts)

    items = np.zeros(6 * n + 4 * bound + 16, np.int64)  # what the front workers have before them: argument * 8 + kind
    item_head, item_tail = 0, 0
    outside = np.zeros(n, np.int64)  # requests that wait for a request thread
    out_head, out_tail, inside = 0, 0, 0
    direct = np.zeros(n, np.int64)  # unbatched requests that wait for a worker
    direct_head, direct_tail, direct_busy = 0, 0, 0
    with_client = client_s[0] + client_s[1] > 0
    answers = np.zeros(n, np.int64)
    answered_head, answered_tail, turn_end = 0, 0, 0
    to_client = np.zeros(2 * n + 2 if with_client else 0, np.int64)
    client_head, client_tail, client_busy, client_item = 0, 0, False, 0
    client_end = 0.0
    mode = np.full(fronts, -1, np.int64)
    argument = np.zeros(fronts, np.int64)
    front_end = np.zeros(fronts)
    front_idle = np.zeros(fronts)
    # what an event loop does before it takes what lies ready, in this order: it reads a request that had waited for
    # another to be answered, answers the rest of a batch, looks for batches to start, answers one that a thread ran
    admitted, rest, pointer, again, ended = -1, -1, 0, False, -1
    told = False  # whether answers of a batch wait to be sent
    client_idle = 0.0

    slots = threads + request_threads
    job_end = np.zeros(slots)
    job_of = np.zeros(slots, np.int64)  # batch, or -1 - request
    thread_of = np.zeros(slots, np.int64)
    idle_since = np.full(threads, 0.0)
    if poll_s > 0:
        for thread in range(threads):
            idle_since[thread] = poll_s * np.random.random()
    busy_thread = np.zeros(threads, np.bool_)
    jobs, threads_busy, held = 0, 0, 0
    looking = False
    timer = np.inf

    now, work_clock, paced, first_pace = 0.0, 0.0, 0, np.random.randint(paces.shape[0])
    batch_busy, work_done, client_total, roused, client_roused = 0.0, 0.0, 0.0, 0.0, 0.0
    arrived, finished, made = 0, 0, 0
    fronts_busy = 0
    first_read, first_answer = True, True  # whether the next one is the first in this turn of the event loop
    ran = np.zeros(total_queues)  # when the last run of each queue ended
    turn_of, turn, turn_rows = np.zeros(n, np.int64), 0, np.zeros(n + 1, np.int64)  # rows read in each turn

    while finished < n:
        running = fronts_busy + (1 if client_busy else 0)
        active = running + jobs * batch_cores
        share = 1.0 if active <= cores else cores / active
        pace = share * paces[(first_pace + paced) % paces.shape[0]]
        due = times[arrived] if arrived < n else np.inf
        wait, what, index = _next_event(
            now, work_clock, pace, mode, front_end, client_busy, client_end, jobs, job_end, due, timer
        )
        if what < 0:
            break
        if active > 0 and wait > (paced + 1) * pace_s - now:
            wait, what = (paced + 1) * pace_s - now, PACE_CHANGES
            paced += 1
        if wait > 0:
            now += wait
            if active == 0:
                paced = int(now / pace_s)
            work_clock += wait * pace
            batch_busy += wait * threads_busy
            work_done += wait * share * (fronts_busy + jobs * batch_cores)
            if client_busy:
                client_total += wait * share

        kind_before = -1
        tries = 0  # how many threads look for a batch; -1: all that are free
        tried = -1  # which one, when it is one
        enter = -1  # a request that reaches the server
        if what == ARRIVAL:
            if with_client:
                to_client[client_tail] = 2 * arrived
                client_tail += 1
            else:
                enter = arrived
            arrived += 1
        elif what == CLIENT_ENDS:
            client_busy = False
            client_idle = now
            r = client_item >> 1
            if client_item & 1:
                latency[r] += now
                finished += 1
            else:
                enter = r
        elif what == TIMER:
            timer = np.inf
            if loop:
                if not looking:
                    looking = True
                    items[item_tail] = LOOK
                    item_tail += 1
            elif poll_s > 0:
                tries, tried = 1, held
            else:
                tries = -1
        elif what == JOB_ENDS:
            job, thread = job_of[index], thread_of[index]
            ran[queue_of[-1 - job] if job < 0 else batches[job, QUEUE]] = now
            jobs -= 1
            job_end[index], job_of[index], thread_of[index] = job_end[jobs], job_of[jobs], thread_of[jobs]
            if job < 0:
                direct_busy -= 1
                items[item_tail] = (-1 - job) * 8 + ANSWER
                item_tail += 1
            elif loop:
                items[item_tail] = job * 8 + DONE
                item_tail += 1
            else:
                busy_thread[thread] = False
                threads_busy -= 1
                idle_since[thread] = now
                tries, tried = (1, thread) if poll_s > 0 else (-1, -1)
                at = q[batches[job, QUEUE], PARTS_AT]
                for p in range(batches[job, FIRST], part_ends[job]):
                    r = parts[at + p]
                    missing[r] -= 1
                    if missing[r] == 0:
                        items[item_tail] = r * 8 + ANSWER
                        item_tail += 1
        elif what == FRONT_ENDS:
            f, kind, held_now = index, mode[index], argument[index]
            kind_before = kind
            mode[f] = -1
            front_idle[f] = now
            fronts_busy -= 1
            answered = -1
            if kind == READ:
                r = held_now
                k = queue_of[r]
                entered[r] = now
                if q[k, OFF]:
                    if loop and not inline[k, sizes[r]]:
                        direct[direct_tail] = r
                        direct_tail += 1
                    else:
                        mode[f], argument[f] = SINGLE, r
                        seconds = _run_s(k, sizes[r], now - ran[k], work, cold, cool_s, factors, factor_ends)
                        front_end[f] = work_clock + seconds
                        rows[made], begun[made] = sizes[r], now
                        made += 1
                        fronts_busy += 1
                elif _enqueue(q, k, r, sizes[r], now, order, batches, started, part_ends, parts, missing, counts):
                    if loop:
                        if not looking:
                            looking = True
                            items[item_tail] = LOOK
                            item_tail += 1
                    elif poll_s > 0:
                        if not q[k, FLAG] and _ready_at(q, k, timeouts, order, batches, started) <= now:
                            q[k, FLAG] = 1
                            for thread in range(threads):
                                if not busy_thread[thread]:
                                    tries, tried = 1, thread
                                    break
                    else:
                        tries = -1
                else:
                    latency[r] = np.nan
                    mode[f], argument[f] = ANSWER, r
                    front_end[f] = work_clock + front_s[k, 1]
                    fronts_busy += 1
            elif kind == SINGLE:
                r = held_now
                ran[queue_of[r]] = now
                mode[f], argument[f] = ANSWER, r
                front_end[f] = work_clock + front_s[queue_of[r], 1]
                if loop and first_answer:
                    first_answer = False
                    front_end[f] += turn_s[1]
                fronts_busy += 1
            elif kind == ANSWER:
                answered = held_now
            elif kind == RUN:
                rest, pointer = held_now, batches[held_now, FIRST]
                ran[batches[held_now, QUEUE]] = now
            elif kind == ANSWERS:
                r = parts[q[batches[held_now, QUEUE], PARTS_AT] + pointer]
                missing[r] -= 1
                if missing[r] == 0:
                    answered = r
                pointer += 1
                if pointer == part_ends[held_now]:
                    rest = -1
                told = True
            if answered >= 0:
                inside -= 1
                answers[answered_tail] = answered
                answered_tail += 1
                if out_head < out_tail:
                    if loop:
                        admitted = outside[out_head]
                    else:
                        inside += 1
                        items[item_tail] = outside[out_head] * 8 + READ
                        item_tail += 1
                    out_head += 1

        if enter >= 0:
            if loop or inside < request_threads:
                if not loop:  # that counts those that it reads
                    inside += 1
                items[item_tail] = enter * 8 + READ
                item_tail += 1
            else:
                outside[out_tail] = enter
                out_tail += 1

        # answers go out: under an event loop when all is done that lay ready when it last looked
        resting = mode[0] < 0 and admitted < 0 and rest < 0 and not again
        turn_over = resting and item_head >= turn_end
        if turn_over:
            turn_end = item_tail
            turn += 1 if turn_rows[turn] else 0
            if answered_head < answered_tail:
                first_read, first_answer = True, True
        if turn_over or not loop or answered_tail - answered_head >= GATHERED:
            client_tail, finished = _send(
                now, answers[answered_head:answered_tail], times, latency, to_client, client_tail, finished
            )
            answered_head = answered_tail

        # front workers take what is before them
        for f in range(fronts):
            while mode[f] < 0 and (admitted >= 0 or rest >= 0 or again or item_head < item_tail):
                if admitted >= 0:
                    kind, held_now, admitted = READ, admitted, -1
                elif rest >= 0:
                    kind, held_now = ANSWERS, rest
                elif again:
                    kind, held_now, again = LOOK, 0, False
                else:
                    if told:  # answers of batches go out before anything else is read
                        client_tail, finished = _send(
                            now, answers[answered_head:answered_tail], times, latency, to_client, client_tail, finished
                        )
                        answered_head, told, first_read, first_answer = answered_tail, False, True, True
                        turn_end = item_tail
                        turn += 1 if turn_rows[turn] else 0
                    kind, held_now = items[item_head] & 7, items[item_head] >> 3
                    item_head += 1
                if kind == READ and loop:
                    if inside >= request_threads:
                        outside[out_tail] = held_now
                        out_tail += 1
                        continue
                    inside += 1
                    turn_of[held_now] = turn
                    turn_rows[turn] += sizes[held_now]
                if kind in (READ, ANSWER, ANSWERS):
                    k = batches[held_now, QUEUE] if kind == ANSWERS else queue_of[held_now]
                    mode[f], argument[f] = kind, held_now
                    front_end[f] = work_clock + front_s[k, 0 if kind == READ else 1]
                    if kind == ANSWERS:
                        r = parts[q[k, PARTS_AT] + pointer]
                        came = turn_rows[turn_of[r]]
                        added = task_s[k, min(batches[held_now, ROWS], came)] - lone_s[k] * sizes[r] / came
                        front_end[f] = max(work_clock, front_end[f] + added)
                    elif kind == READ and loop and turn_rows[turn] == sizes[held_now]:
                        front_end[f] += lone_s[k]
                    if now > front_idle[f]:
                        front_end[f] += wake_s[0] + rouse_s
                        roused += rouse_s
                        first_read = True
                    if kind == READ and arrived - finished > crowd:
                        front_end[f] += crowd_s
                    if loop and kind == READ and first_read:
                        first_read = False
                        front_end[f] += turn_s[0]
                    elif loop and kind != READ and first_answer:
                        first_answer = False
                        front_end[f] += turn_s[1]
                    fronts_busy += 1
                elif kind == DONE:
                    threads_busy -= 1
                    ended, again = held_now, True
                else:
                    looking = False
                    while threads_busy < threads:
                        b = _next_batch(q, now, timeouts, order, batches, started, counts)
                        if b < 0:
                            break
                        k = batches[b, QUEUE]
                        gap = now - ran[k]
                        seconds = _run_s(k, batches[b, ROWS], gap, work, cold, cool_s, factors, factor_ends)
                        rows[made], begun[made] = batches[b, ROWS], now
                        made += 1
                        for p in range(batches[b, FIRST], part_ends[b]):
                            r = parts[q[k, PARTS_AT] + p]
                            queued[r] = now - entered[r]
                        if inline[k, batches[b, ROWS]]:
                            mode[f], argument[f] = RUN, b
                            front_end[f] = work_clock + seconds
                            fronts_busy += 1
                            again = True
                            break
                        job_end[jobs], job_of[jobs] = work_clock + seconds + thread_s, b
                        jobs += 1
                        threads_busy += 1
                    timer = np.inf
                    if mode[f] < 0:
                        if threads_busy < threads:
                            timer = _earliest(q, timeouts, order, batches, started)
                        if ended >= 0:
                            rest, pointer, ended = ended, batches[ended, FIRST], -1

        if mode[0] < 0 and answered_head < answered_tail:  # nothing lies ready
            told, first_read, first_answer = False, True, True
            client_tail, finished = _send(
                now, answers[answered_head:answered_tail], times, latency, to_client, client_tail, finished
            )
            answered_head = answered_tail

        if not loop and (what in (JOB_ENDS, TIMER) or tries != 0 or kind_before == READ):
            while tries != 0 and threads_busy < threads:
                b = _next_batch(q, now, timeouts, order, batches, started, counts)
                if b < 0:
                    if tried >= 0:
                        idle_since[tried] = now
                    break
                if tried < 0:
                    tried = 0
                    while busy_thread[tried]:
                        tried += 1
                k = batches[b, QUEUE]
                gap = now - ran[k]
                seconds = _run_s(k, batches[b, ROWS], gap, work, cold, cool_s, factors, factor_ends)
                seconds += task_s[k, batches[b, ROWS]] * (part_ends[b] - batches[b, FIRST])
                job_end[jobs], job_of[jobs], thread_of[jobs] = work_clock + seconds, b, tried
                jobs += 1
                threads_busy += 1
                busy_thread[tried] = True
                tried = -1
                rows[made], begun[made] = batches[b, ROWS], now
                made += 1
                for p in range(batches[b, FIRST], part_ends[b]):
                    r = parts[q[k, PARTS_AT] + p]
                    queued[r] = now - entered[r]
                if tries > 0:
                    tries -= 1
            timer = np.inf
            if threads_busy < threads:
                ready = _earliest(q, timeouts, order, batches, started)
                if ready < np.inf:
                    if poll_s > 0:
                        timer, held = _next_look(max(ready, now), now, poll_s, idle_since, busy_thread)
                    else:
                        timer = max(ready, now)

        while direct_head < direct_tail and direct_busy < request_threads:
            r = direct[direct_head]
            direct_head += 1
            direct_busy += 1
            k = queue_of[r]
            queued[r] = now - entered[r]
            rows[made], begun[made] = sizes[r], now
            made += 1
            seconds = _run_s(k, sizes[r], now - ran[k], work, cold, cool_s, factors, factor_ends)
            job_end[jobs], job_of[jobs] = work_clock + seconds, -1 - r
            jobs += 1
        if not client_busy and client_head < client_tail:
            client_item = to_client[client_head]
            client_head += 1
            client_busy = True
            client_end = work_clock + client_s[client_item & 1]
            if now > client_idle:
                client_end += wake_s[1] + rouse_s
                client_roused += rouse_s

    totals[0], totals[1], totals[4] = made, batch_busy, now
    totals[2], totals[3] = work_done - roused, client_total - client_roused
