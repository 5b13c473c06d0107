"""How many requests a second the simulator computes, one core, the compiled code warm.

python -m tests.benchmarks.simulate
"""

from __future__ import annotations

import time

import numpy as np

from launchpad.spec import BatchQueue
from launchpad.tune.simulate import TENSORFLOW_POLL_S, Host, Queue, ServiceTimes, poisson_arrivals, simulate

REQUESTS = 1_000_000
RATE_RPS = 5000.0
TIMES = ServiceTimes(
    1e-4 + 5e-5 * np.arange(65), task_s=np.full(65, 1e-5), read_s=4e-5, answer_s=2e-5, noise=np.linspace(0.8, 1.2, 50)
)
BATCHED = BatchQueue(max_batch_size=64, batch_timeout_micros=500, max_enqueued_batches=64)
LOOP = Host(cores=2, event_loop=True, inline_s=8e-4, send_s=1e-5, receive_s=1e-5, wake_s=1e-4, client_wake_s=5e-5)
THREADS = Host(cores=4, front_threads=4, poll_s=TENSORFLOW_POLL_S)
CASES = {
    "embedded server, load generator on the same cores": (BATCHED, LOOP),
    "embedded server, batching off": (None, LOOP),
    "TensorFlow Serving's threads": (BATCHED, THREADS),
    "queue alone": (BATCHED, Host()),
}


def main() -> None:
    arrivals = poisson_arrivals(RATE_RPS, REQUESTS, seed=1)
    print("| case | requests a second |\n| --- | ---: |")
    for name, (queue, host) in CASES.items():
        simulate([Queue(queue, TIMES)], 2, host, poisson_arrivals(RATE_RPS, 1000))
        began = time.perf_counter()
        simulate([Queue(queue, TIMES)], 2, host, arrivals)
        print(f"| {name} | {REQUESTS / (time.perf_counter() - began):,.0f} |")


if __name__ == "__main__":
    main()
