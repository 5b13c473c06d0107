"""`invoke tune --variants`: the same model exported otherwise, and what each way is worth on this backend.

frozen: variables as constants, which TensorFlow folds. xla: frozen, and compiled by XLA for each batch size; of the
signatures those that take strings stay as they are, since XLA knows none. A variant is offered only if the server loads
it and answers every signature as the exporter does; what it gains is computed from a profile of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launchpad import console, exported, files, tuned
from launchpad.client import GrpcClient, RestClient, ServerError
from launchpad.errors import EnvironmentFault, GateFailed
from launchpad.examples import Examples
from launchpad.server import Server
from launchpad.spec import Traffic
from launchpad.stage import Context
from launchpad.tune import predict, profile, profiling, tuning
from launchpad.tune.bench import Bench
from launchpad.tune.predict import Configuration, Model

AS_IS, FROZEN, XLA = "as is", "frozen", "xla"
EXAMPLES = 64


@dataclass(frozen=True)
class Variant:
    """A way of exporting: its largest difference to the exporter's answers, its costs, and what it is expected to
    reach. obstacle: why it is not offered; empty when it is."""

    kind: str
    difference: float = math.nan
    profile: profile.Profile | None = None
    expected: float = math.nan
    obstacle: str = ""


def write(source: Path, target: Path, kind: str) -> None:
    """Write a SavedModel with the same signatures, frozen or compiled. Raises ValueError for a model that has none."""
    from launchpad.export.stage import quiet_tensorflow

    with quiet_tensorflow():
        import tensorflow as tf

        loaded = tf.saved_model.load(str(source))
        if not loaded.signatures:
            raise ValueError("the model has no signatures")
        signatures = {name: _frozen(function, kind == XLA) for name, function in loaded.signatures.items()}
        tf.saved_model.save(tf.Module(), str(target), signatures)


def _frozen(function: Any, compiled: bool) -> Any:
    """Return a signature's function with its variables as constants, taking and giving the same names."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    constant = convert_variables_to_constants_v2(function)
    taken = function.structured_input_signature[1]
    # the frozen function takes and gives flat lists, in the order of the names
    given = sorted(function.structured_outputs)
    names = sorted(taken)
    numeric = all(spec.dtype != tf.string for spec in taken.values())
    specs = [tf.TensorSpec(taken[name].shape, taken[name].dtype, name=name) for name in names]

    @tf.function(input_signature=specs, jit_compile=True if compiled and numeric else None, autograph=False)
    def call(*inputs: Any) -> dict[str, Any]:
        return dict(zip(given, constant(*inputs), strict=True))

    return call


def compare(context: Context, model: str) -> list[Variant]:
    """Write, check and profile each variant of a model; `as is` comes first."""
    layout = context.layout
    declared = context.declaration.pipeline.models[model]
    source = layout.version(model, declared.version)
    examples = exported.examples(layout, model, declared.version)
    place = tuning.workplace(layout, model)
    configuration = tuning.declared_configuration(context, model)
    line = tuning.line_of(context, model)
    found = []
    for kind in (AS_IS, FROZEN, XLA):
        console.say(f"  {model}, {kind}")
        version = source
        try:
            if kind != AS_IS:
                version = place / kind / str(declared.version)
                files.remove(version)
                version.parent.mkdir(parents=True, exist_ok=True)
                write(source, version, kind)
            bench = Bench(context.declaration, place / f"bench-{kind.replace(' ', '-')}", [line], {model: version})
            found.append(_tried(context, bench, line, examples, declared.acceptance.parity, kind, configuration))
        except (EnvironmentFault, GateFailed, ServerError, ValueError, AssertionError) as error:
            said = str(error).strip() or type(error).__name__  # TensorFlow asserts that it knows what a model refers to
            found.append(Variant(kind, obstacle=said.splitlines()[0]))
    return found


def _tried(
    context: Context,
    bench: Bench,
    line: Traffic,
    examples: Examples,
    parity: float,
    kind: str,
    configuration: Configuration,
) -> Variant:
    bench.declare({}, 1)
    try:
        server = bench.launch()
        far = difference(server, line.model, examples)
    finally:
        bench.stop()
    if not far <= parity:
        return Variant(kind, far, obstacle=f"answers differ by {far:.2g}, more than acceptance.parity {parity:g}")
    costs = profiling.measure(bench, line, examples, tuned.model_digest(context.layout, line.model), _quiet)
    goal = predict.Goal("rate", tuning.goal_of(context).limits)
    return Variant(kind, far, costs, predict.expected(Model.of(costs), configuration, goal, rows=line.batch).value)


_quiet: Callable[[str], None] = lambda _: None  # noqa: E731


def difference(server: Server, model: str, examples: Examples) -> float:
    """Return the largest difference of the server's answers to the exporter's, over all signatures; without end where
    texts differ."""
    client: GrpcClient | RestClient
    client = GrpcClient(f"127.0.0.1:{server.grpc_port}") if server.grpc_port else RestClient(server.rest_url or "")
    worst = 0.0
    for signature, inputs in examples.inputs.items():
        given = client.predict(model, signature, {name: values[:EXAMPLES] for name, values in inputs.items()})
        expected = examples.outputs[signature]
        for name, values in given.items():
            wanted = expected[name] if name in expected else next(iter(expected.values()))
            worst = float(np.maximum(worst, _far(np.asarray(values), np.asarray(wanted)[:EXAMPLES])))
    return worst


def _far(values: np.ndarray, wanted: np.ndarray) -> float:
    if values.dtype.kind in "biufc" and wanted.dtype.kind in "biufc":
        return float(np.max(np.abs(values.astype(np.float64) - wanted)))
    return 0.0 if (values.astype(str) == wanted.astype(str)).all() else math.inf


def show(context: Context, model: str | None) -> None:
    """Compare the variants of models and print what each is worth."""
    for name in tuning.models_of(context, model):
        found = compare(context, name)
        asis = found[0]
        rows = []
        for one in found:
            if one.profile is None:
                rows.append((one.kind, "", "", "", "", one.obstacle))
                continue
            batch_s = one.profile.batch_s
            gain = f"{one.expected / asis.expected - 1:+.0%}" if one is not asis else ""
            costs = (f"{batch_s[1] * 1e6:.0f}", f"{batch_s[16] * 1e6:.0f}", f"{one.expected:,.0f}")
            rows.append((one.kind, f"{one.difference:.1g}", *costs, gain))
        columns = ("variant", "largest difference", "1 row µs", "16 rows µs", "expected requests/s", "gain")
        chosen = tuning.declared_configuration(context, name).title
        console.table(f"{name}, {chosen}", columns, rows, right=columns[1:5])
        document = [
            {
                "kind": one.kind,
                "difference": _finite(one.difference),
                "expected_rps": _finite(one.expected),
                "obstacle": one.obstacle,
            }
            for one in found
        ]
        files.write_json(context.layout.root / "reports" / "tuning" / f"{name}-variants.json", document)
        for one in found[1:]:
            if one.profile and one.expected > asis.expected * (1 + tuning.SAME):
                where = tuning.workplace(context.layout, name) / one.kind
                console.say(f"  {one.kind} is in {context.layout.relative(where)}; publish it as a version of its own")


def _finite(value: float) -> float | None:
    """Return a number as JSON has it."""
    return value if math.isfinite(value) else None
