"""The warmup stage: sends real requests to every signature over REST and gRPC, and records what the first met."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from launchpad import console, exported, files
from launchpad.client import GrpcClient, RestClient, ServerError
from launchpad.errors import GateFailed, Problem
from launchpad.examples import Examples, Values, same_answer
from launchpad.server import Server
from launchpad.stage import Context, Outcome, Plan, Stage

COLD_RATIO = 5.0
COLD_MS = 20.0
"""A first request met a cold server if it took both COLD_RATIO times the steady median and COLD_MS more."""


@dataclass(frozen=True)
class Warmed:
    """What the warmup of one signature over one protocol saw. Latencies in milliseconds.

    first_ms: the first request that this start of the server answered; None where it failed.
    steady_ms: median of the second half of the requests; None where all failed.
    """

    model: str
    signature: str
    protocol: str
    requests: int
    failures: dict[str, int]
    first_ms: float | None
    steady_ms: float | None

    @property
    def met_cold_server(self) -> bool | None:
        if self.first_ms is None or self.steady_ms is None:
            return None
        return self.first_ms > COLD_RATIO * self.steady_ms and self.first_ms > self.steady_ms + COLD_MS


class Warmup(Stage):
    name = "warmup"
    summary = "send real requests over REST and gRPC, record first against steady latency"

    def plan(self, context: Context) -> list[Plan]:
        return [Plan("requests to every signature", "a live stage always runs")]

    def run(self, context: Context) -> Outcome:
        server = Server.ready(context.layout)
        earlier = files.read_mapping(context.layout.warmup_result)
        known = {}
        if earlier.get("instance") == server.instance:
            known = {(w["model"], w["signature"], w["protocol"]): w["first_ms"] for w in earlier["warmed"]}
        jobs = list(_jobs(context, server))
        warmed = []
        with console.progress("warmup") as advance:
            for done, (protocol, client, model, signature, examples) in enumerate(jobs):
                advance(done, len(jobs))
                count = context.declaration.pipeline.models[model].warmup.requests
                result = _warm(protocol, client, model, signature, examples, count)
                key = (model, signature, protocol)
                warmed.append(Warmed(**{**asdict(result), "first_ms": known.get(key, result.first_ms)}))
        rows = [{**asdict(result), "met_cold_server": result.met_cold_server} for result in warmed]
        files.write_json(context.layout.warmup_result, {"instance": server.instance, "warmed": rows})
        return _outcome(warmed)


def _jobs(context: Context, server: Server) -> Iterator[tuple[str, RestClient | GrpcClient, str, str, Examples]]:
    """Yield (protocol, client, model, signature, examples) for everything that is to be warmed."""
    clients: list[tuple[str, RestClient | GrpcClient]] = []
    if server.rest_url:
        clients.append(("REST", RestClient(server.rest_url)))
    if server.grpc_address:
        clients.append(("gRPC", GrpcClient(server.grpc_address)))
    for name, model in context.declaration.pipeline.models.items():
        examples = exported.examples(context.layout, name, model.version)
        for signature in examples.inputs:
            for protocol, client in clients:
                yield protocol, client, name, signature, examples


def _warm(
    protocol: str, client: RestClient | GrpcClient, model: str, signature: str, examples: Examples, count: int
) -> Warmed:
    """Send single-example requests one after the other; a wrong answer counts as a failure."""
    failures: Counter[str] = Counter()
    latencies: list[float | None] = []
    for index in itertools.islice(itertools.cycle(range(len(examples))), count):
        inputs: dict[str, Values] = {
            name: values[index : index + 1] for name, values in examples.inputs[signature].items()
        }
        start = time.perf_counter_ns()
        try:
            answer = client.predict(model, signature, inputs)
        except ServerError as error:
            failures[error.kind] += 1
            latencies.append(None)
            continue
        latencies.append((time.perf_counter_ns() - start) / 1e6)
        expected = {name: values[index : index + 1] for name, values in examples.outputs[signature].items()}
        if set(answer) == {""}:  # REST gives a single output bare
            answer = dict(zip(expected, answer.values(), strict=False))
        if answer.keys() != expected.keys() or not all(same_answer(expected[key], answer[key]) for key in expected):
            failures["wrong answer"] += 1
    steady = [latency for latency in latencies[count // 2 :] if latency is not None]
    return Warmed(
        model=model,
        signature=signature,
        protocol=protocol,
        requests=count,
        failures=dict(failures),
        first_ms=latencies[0],
        steady_ms=statistics.median(steady) if steady else None,
    )


def _outcome(warmed: list[Warmed]) -> Outcome:
    """Say what happened. Raises GateFailed if some signature answered nothing at all."""
    dead = [result for result in warmed if sum(result.failures.values()) >= result.requests]
    if dead:
        raise GateFailed(
            [
                Problem(
                    f"{result.model} {result.signature} over {result.protocol}: every request failed: {result.failures}"
                )
                for result in dead
            ]
        )
    sent = sum(result.requests for result in warmed)
    failed = sum(sum(result.failures.values()) for result in warmed)
    cold = [f"{result.model} {result.signature} {result.protocol}" for result in warmed if result.met_cold_server]
    met = f"the first client met a cold server: {', '.join(cold)}" if cold else "no first request met a cold server"
    return Outcome("done", f"{sent} requests, {failed} failed; {met}")
