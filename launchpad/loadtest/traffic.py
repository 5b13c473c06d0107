"""The requests of a load test, made beforehand: real examples as request bodies, with the answers to expect."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from launchpad.client import plain
from launchpad.declaration import Declaration
from launchpad.errors import EnvironmentFault
from launchpad.examples import Examples, same_answer
from launchpad.layout import Layout
from launchpad.spec import Traffic

REQUESTS = 200
"""Different requests of each line, sent in turn."""


@dataclass(frozen=True)
class Request:
    body: bytes
    expected: dict[str, np.ndarray] = field(compare=False)

    def is_right(self, answer: bytes) -> bool:
        """Tell whether the body of a 200 answer to a row-format predict request is the exporter's answer."""
        try:
            rows = json.loads(answer)["predictions"] if b"NaN" in answer else orjson.loads(answer)["predictions"]
            return all(
                same_answer(values, np.asarray(_column(rows, name, len(self.expected))))
                for name, values in self.expected.items()
            )
        except (ValueError, KeyError, TypeError):
            return False


@dataclass(frozen=True)
class Line:
    """A line of traffic: what is asked of whom, and the requests to ask with."""

    name: str
    path: str
    weight: int
    declared: Traffic
    requests: list[Request]


def lines(declaration: Declaration, profile: str) -> list[Line]:
    """Return the traffic of a profile, ready to be sent.

    Raises EnvironmentFault if a model has not been exported, or a signature has no examples.
    """
    layout = Layout(declaration.root)
    cache: dict[str, Examples] = {}
    made = []
    for traffic in declaration.pipeline.traffic(profile):
        name = traffic.model
        path = layout.evidence(name, declaration.pipeline.models[name].version) / "examples.npz"
        if not path.exists():
            raise EnvironmentFault(f"{name} has no examples", layout.relative(path), "run `invoke export`")
        examples = cache.setdefault(name, Examples.load(path))
        if traffic.signature not in examples.inputs:
            raise EnvironmentFault(f"{name} has no examples for {traffic.signature}", layout.relative(path))
        made.append(
            Line(
                name=traffic.line,
                path=f"/v1/models/{name}:predict",
                weight=traffic.weight,
                declared=traffic,
                requests=[_request(traffic, examples, index) for index in range(REQUESTS)],
            )
        )
    return made


def _request(traffic: Traffic, examples: Examples, index: int) -> Request:
    rows = np.arange(index * traffic.batch, (index + 1) * traffic.batch) % len(examples)
    inputs = {
        name: values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]
        for name, values in examples.inputs[traffic.signature].items()
    }
    columns = {name: plain(values) for name, values in inputs.items()}
    single = len(columns) == 1
    instances: list[Any] = (
        next(iter(columns.values()))
        if single
        else [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    )
    body = orjson.dumps({"signature_name": traffic.signature, "instances": instances})
    outputs = examples.outputs[traffic.signature]
    return Request(body, {name: values[rows] for name, values in outputs.items()})


def _column(rows: list[Any], name: str, outputs: int) -> list[Any]:
    """Return an output of all rows; a single output stands bare in each row."""
    return rows if outputs == 1 else [row[name] for row in rows]
