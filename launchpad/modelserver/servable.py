"""A loaded version of a model: its signatures, and the ways to run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .execution import Done
from .protos import MetaGraphDef, SignatureDefMap
from .runtime import Session, Step
from .tensor import Tensor

DEFAULT_SIGNATURE = "serving_default"
_INIT_SIGNATURE = "__saved_model_init_op"


@dataclass(frozen=True)
class TensorInfo:
    """Where an input or output of a signature is found in the graph, and its data type."""

    name: str
    dtype: int


@dataclass(frozen=True)
class Signature:
    """A way to call a model: inputs and outputs by the names that clients use."""

    name: str
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    definition: Any
    """The SignatureDef."""
    input_types: Mapping[str, int]
    feeds: tuple[str, ...]
    """Names of all input tensors, sorted."""
    fetches: tuple[str, ...]
    """Names of all output tensors, sorted."""
    all_outputs: Mapping[str, str]
    """The name in the graph of each output."""
    defaults: Mapping[str, Any]
    """TensorProto messages for the inputs that a request may leave out."""

    @classmethod
    def from_definition(cls, name: str, definition: Any) -> Signature:
        """A signature from its SignatureDef, whose own order is another in each process."""
        inputs = {alias: TensorInfo(info.name, info.dtype) for alias, info in sorted(definition.inputs.items())}
        outputs = {alias: TensorInfo(info.name, info.dtype) for alias, info in sorted(definition.outputs.items())}
        return cls(
            name,
            inputs,
            outputs,
            definition,
            {alias: info.dtype for alias, info in inputs.items()},
            tuple(sorted({info.name for info in inputs.values()})),
            tuple(sorted({info.name for info in outputs.values()})),
            {alias: info.name for alias, info in outputs.items()},
            dict(definition.defaults),
        )


class Runner(Protocol):
    """Runs one step of a session for many requests."""

    def submit(self, values: Sequence[Tensor], deadline: float | None, done: Done) -> None:
        """Run on `values` before `deadline` (monotonic clock) and tell `done`."""

    def run_now(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Run on this thread, as `submit` would; raises ServingError."""

    def close(self) -> None:
        """Nothing more will be submitted."""


RunnerFactory = Callable[[Step, "Plan", bool], Runner]
"""Makes the runner of a step; the flag tells whether the plan is that of a whole signature."""


@dataclass(frozen=True)
class Plan:
    """What a run feeds and fetches: names of tensors, sorted."""

    feeds: tuple[str, ...]
    fetches: tuple[str, ...]


class Servable:
    """A version of a model that can be asked.

    Used on the event loop, except for `run_now`. Whoever holds it over a wait calls `acquire` and `release`, so
    that it is unloaded only when nobody does.
    """

    def __init__(self, name: str, version: int, session: Session, make_runner: RunnerFactory) -> None:
        self.name = name
        self.version = version
        meta_graph = MetaGraphDef.FromString(session.meta_graph)
        session.meta_graph = b""
        self.signatures = {
            key: Signature.from_definition(key, definition) for key, definition in meta_graph.signature_def.items()
        }
        self._session = session
        self._make_runner = make_runner
        self._runners: dict[Plan, Runner] = {}
        self._whole = {Plan(item.feeds, item.fetches) for item in self.signatures.values() if item.feeds}
        self._users = 0
        self._idle: Callable[[], None] | None = None

    def signature(self, name: str) -> Signature | None:
        """The signature of that name, the default one for ""."""
        return self.signatures.get(name or DEFAULT_SIGNATURE)

    def signature_map(self) -> Any:
        """All signatures as a SignatureDefMap."""
        result = SignatureDefMap()
        for name, signature in self.signatures.items():
            result.signature_def[name].CopyFrom(signature.definition)
        return result

    def runner(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> Runner:
        """The runner for tensors of these names, both sorted. Raises NOT_FOUND for a name not in the graph."""
        plan = Plan(feeds, fetches)
        runner = self._runners.get(plan)
        if runner is None:
            step = self._session.step(feeds, fetches)
            runner = self._runners[plan] = self._make_runner(step, plan, plan in self._whole)
        return runner

    def acquire(self) -> None:
        """Keep the version loaded."""
        self._users += 1

    def release(self) -> None:
        """Give up one `acquire`."""
        self._users -= 1
        if not self._users and self._idle is not None:
            self._idle()

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Call back once, when nobody holds the version; nobody may acquire it any more."""
        self._idle = callback
        if not self._users:
            callback()

    def close(self) -> None:
        """Give back the session; call it when idle, on any thread."""
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()
        self._session.close()
