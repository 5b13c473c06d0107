"""The threshold policy: larger batches while there is room under the latency limit, smaller ones far beyond it."""

from __future__ import annotations

import math

from launchpad.spec import BatchQueue, Bounds
from launchpad.tune.autotune.control import Observation, Policy, Rules, Setting, Wish

FULL = 0.5
"""Share of max_batch_size that batches must reach on average for larger ones to promise anything."""
FAR_OVER = 2.0


def threshold(rules: Rules) -> Policy:
    """Return the policy: grow when p99 is under the limit and the rate over its floor, shrink over twice the limit.

    Between the limit and twice the limit nothing changes. Growing doubles, shrinking halves, both within the bounds;
    the queue holds the same number of examples as before.
    """

    def wish(current: Setting, seen: Observation) -> Wish:
        limit_ms, floor_rps = rules.p99_ms, rules.declared.load_floor_rps
        if not isinstance(current, BatchQueue):
            return Wish(current, "the model is not batched; this policy leaves it so")
        if seen.p99_ms is None:
            return Wish(current, "no request was answered well")
        p99, load = f"p99 {seen.p99_ms:.3g} ms", f"{seen.rate_rps:.0f} requests/s"
        if seen.p99_ms > FAR_OVER * limit_ms:
            smaller = _scaled(current, 0.5, rules.declared.bounds)
            why = f"{p99} is over {FAR_OVER:g} × {limit_ms:g} ms"
            return Wish(smaller, why if smaller != current else f"{why}; the parameters are at their lower bounds")
        if seen.p99_ms > limit_ms:
            return Wish(current, f"{p99} is between {limit_ms:g} ms and {FAR_OVER:g} × that: nothing changes there")
        if seen.rate_rps < floor_rps:
            return Wish(current, f"{p99} is under {limit_ms:g} ms, {load} under the floor of {floor_rps:g}")
        if seen.batch_size is not None and seen.batch_size < FULL * current.max_batch_size:
            full = f"batches hold {seen.batch_size:.1f} of {current.max_batch_size} on average"
            return Wish(current, f"{p99} is under {limit_ms:g} ms; {full}: larger ones promise nothing")
        larger = _scaled(current, 2, rules.declared.bounds)
        why = f"{p99} is under {limit_ms:g} ms at {load}"
        return Wish(larger, why if larger != current else f"{why}; the parameters are at their upper bounds")

    return wish


def _scaled(queue: BatchQueue, factor: float, bounds: Bounds) -> BatchQueue:
    largest = bounds.max_batch_size.clamp(max(1, int(queue.max_batch_size * factor)))
    if largest == queue.max_batch_size == 1:
        return queue  # nothing waits for a batch of one
    timeout = bounds.batch_timeout_micros.clamp(int(queue.batch_timeout_micros * factor))
    return resized(queue, largest, timeout)


def resized(queue: BatchQueue, max_batch_size: int, batch_timeout_micros: int) -> BatchQueue:
    """Return the queue with another batch size and timeout, bounded at the same number of examples as before."""
    examples = queue.max_batch_size * queue.max_enqueued_batches
    at_once = min(queue.max_execution_batch_size or max_batch_size, max_batch_size)
    sizes = tuple(size for size in queue.allowed_batch_sizes if size < at_once)
    if queue.max_batch_size == max_batch_size and queue.batch_timeout_micros == batch_timeout_micros:
        return queue
    return BatchQueue(
        max_batch_size=max_batch_size,
        batch_timeout_micros=batch_timeout_micros,
        max_enqueued_batches=max(1, math.ceil(examples / max_batch_size)),
        allowed_batch_sizes=(*sizes, at_once) if queue.allowed_batch_sizes else (),
        pad_variable_length_inputs=queue.pad_variable_length_inputs,
        enable_large_batch_splitting=queue.enable_large_batch_splitting,
        max_execution_batch_size=at_once if queue.max_execution_batch_size else None,
    )
