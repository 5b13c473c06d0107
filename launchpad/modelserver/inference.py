"""The prediction service: what predict, classify, regress and multi-inference mean, whatever they came by.

Requests that cannot be run raise ServingError; those that are run end in a callback, at once or later, on the
event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from google.protobuf import text_format

from .execution import Outcome
from .metrics import Metrics
from .protos import DataType
from .servable import DEFAULT_SIGNATURE, Servable, Signature
from .status import Code, ServingError, invalid_argument
from .tensor import DT_FLOAT, DT_STRING, Tensor
from .tensor_proto import from_proto

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
PREDICT = "tensorflow/serving/predict"

Outputs = dict[str, Tensor]
Classes = list[tuple[bytes, float]]
Answer = Callable[[Any], None]
"""Told the result, or the ServingError in its place."""


@dataclass(frozen=True)
class Classification:
    """The classes of each example: label (empty where the model gives none) and score."""

    examples: list[Classes]


@dataclass(frozen=True)
class Regression:
    """The value of each example."""

    values: list[float]


@dataclass(slots=True)
class Job:
    """A request ready to run: what to feed, what to fetch, and how to read the result."""

    servable: Servable
    feeds: tuple[str, ...]
    fetches: tuple[str, ...]
    values: Sequence[Tensor]
    api: str
    """The API under which the run's latency is counted; "" for not at all."""
    read: Callable[[list[Tensor]], Any]
    """The answer that the fetched tensors make; may raise ServingError."""


class Inference:
    """Makes jobs of requests, and runs and counts them."""

    def __init__(self, metrics: Metrics, *, check_method_names: bool) -> None:
        self._metrics = metrics
        self._check_method_names = check_method_names

    def submit(self, job: Job, deadline: float | None, answer: Answer) -> None:
        """Run a job before `deadline` (monotonic clock) and tell `answer`."""
        servable = job.servable
        started = perf_counter()

        def done(outcome: Outcome) -> None:
            servable.release()
            if isinstance(outcome, ServingError):
                answer(outcome)
                return
            if job.api:
                latency = self._metrics.runtime_latency.cell(servable.name, job.api, "TF1")
                latency.add(int((perf_counter() - started) * 1e6))
            try:
                result = job.read(outcome)
            except ServingError as error:
                result = error
            answer(result)

        runner = servable.runner(job.feeds, job.fetches)
        servable.acquire()
        runner.submit(job.values, deadline, done)

    @staticmethod
    def run_now(job: Job) -> Any:
        """Run a job on this thread, uncounted, and return its answer; raises ServingError."""
        return job.read(job.servable.runner(job.feeds, job.fetches).run_now(job.values))

    def predict(
        self,
        servable: Servable,
        signature: Signature,
        tensors: Mapping[str, Tensor],
        output_filter: Sequence[str] = (),
    ) -> Job:
        """The job that answers with a signature's outputs by name, all or those filtered for."""
        if self._check_method_names:
            _check_predict_method(signature)
        feeds = _bind_inputs(signature, tensors)
        wanted = _bind_outputs(signature, output_filter)
        fetches = tuple(sorted(set(wanted.values()))) if output_filter else signature.fetches

        def read(outputs: list[Tensor]) -> Outputs:
            if len(fetches) == 1:
                return dict.fromkeys(wanted, outputs[0])
            by_name = dict(zip(fetches, outputs, strict=True))
            return {alias: by_name[name] for alias, name in wanted.items()}

        values = [feeds[name] for name in signature.feeds]
        return Job(servable, signature.feeds, fetches, values, "Predict", read)

    def classify(self, servable: Servable, signature_name: str, request: Any) -> Job:
        """The job that answers with the Classification of the examples in an Input message."""
        signature = _required(servable, signature_name, "No signature was found with the name: ")
        feed, fetches = self._classify_tensors(signature)
        return _one_shot(
            servable,
            (feed,),
            fetches,
            request,
            "Classify",
            lambda outputs, count: _read_classification(signature, outputs, count),
        )

    def regress(self, servable: Servable, signature_name: str, request: Any) -> Job:
        """The job that answers with the Regression of the examples in an Input message."""
        signature = _required(servable, signature_name, "No signature was found with the name: ")
        feed, fetches = self._regress_tensors(signature)
        return _one_shot(
            servable,
            (feed,),
            fetches,
            request,
            "Regress",
            lambda outputs, count: _read_regression(signature, outputs, count),
        )

    def multi_inference(self, servable: Servable, request: Any) -> Job:
        """The job that answers with one result for each task of a MultiInferenceRequest, from one run."""
        signatures, feeds, fetches = self._tasks(servable, request)

        def read(outputs: Outputs, count: int) -> list[Classification | Regression]:
            self._metrics.example_counts.cell(servable.name).add(count)
            self._metrics.example_count_total.add(servable.name, amount=count)
            return [
                _read_classification(signature, outputs, count)
                if task.method_name == CLASSIFY
                else _read_regression(signature, outputs, count)
                for task, signature in zip(request.tasks, signatures, strict=True)
            ]

        return _one_shot(servable, feeds, fetches, request.input, "", read)

    def _tasks(self, servable: Servable, request: Any) -> tuple[list[Signature], tuple[str, ...], tuple[str, ...]]:
        """The signatures of a request's tasks, and the names of the tensors that they feed and fetch."""
        signatures: dict[str, Signature] = {}
        feeds: set[str] = set()
        fetches: set[str] = set()
        for task in request.tasks:
            spec = task.model_spec
            if not spec.name:
                raise invalid_argument("Found ModelSpec with an empty model name.")
            if spec.name != request.tasks[0].model_spec.name:
                raise invalid_argument("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
            name = spec.signature_name or DEFAULT_SIGNATURE
            if name in signatures:
                raise invalid_argument(f"Duplicate evaluation of signature: {name}")
            signature = _required(servable, name, "Requested signature not found in model graph: ")
            signatures[name] = signature
            feed, wanted = self._task_tensors(task.method_name, signature)
            feeds.add(feed)
            fetches.update(wanted)
        return list(signatures.values()), tuple(sorted(feeds)), tuple(sorted(fetches))

    def _task_tensors(self, method_name: str, signature: Signature) -> tuple[str, tuple[str, ...]]:
        if method_name == CLASSIFY:
            return self._classify_tensors(signature)
        if method_name == REGRESS:
            return self._regress_tensors(signature)
        raise ServingError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {method_name}")

    def _classify_tensors(self, signature: Signature) -> tuple[str, tuple[str, ...]]:
        if self._check_method_names:
            _check_method(signature, CLASSIFY, "classification")
        if len(signature.inputs) != 1:
            raise invalid_argument("Expected one input Tensor.")
        if len(signature.outputs) not in (1, 2):
            raise invalid_argument(f"Expected one or two output Tensors, found {len(signature.outputs)}")
        if "inputs" not in signature.inputs:
            raise invalid_argument(f"No classification inputs found in SignatureDef: {_debug_string(signature)}")
        found = [signature.outputs[key].name for key in ("classes", "scores") if key in signature.outputs]
        if not found:
            raise invalid_argument(
                'Expected classification signature outputs to contain at least one of "classes" or "scores". '
                f"Signature was: {_debug_string(signature)}"
            )
        return signature.inputs["inputs"].name, tuple(sorted(set(found)))

    def _regress_tensors(self, signature: Signature) -> tuple[str, tuple[str, ...]]:
        if self._check_method_names:
            _check_method(signature, REGRESS, "regression")
        if len(signature.inputs) != 1:
            raise invalid_argument("Expected one input Tensor.")
        if len(signature.outputs) != 1:
            raise invalid_argument("Expected one output Tensor.")
        for kind, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs)):
            if kind not in tensors:
                raise invalid_argument(f"No regression {kind} found in SignatureDef: {_debug_string(signature)}")
        return signature.inputs["inputs"].name, (signature.outputs["outputs"].name,)


def _one_shot(
    servable: Servable,
    feeds: tuple[str, ...],
    fetches: tuple[str, ...],
    request: Any,
    api: str,
    read: Callable[[Outputs, int], Any],
) -> Job:
    """The job that feeds the examples of an Input message to each of `feeds`."""
    examples = _serialized_examples(request)

    def read_all(outputs: list[Tensor]) -> Any:
        return read(dict(zip(fetches, outputs, strict=True)), len(examples.strings))

    return Job(servable, feeds, fetches, [examples] * len(feeds), api, read_all)


def _bind_inputs(signature: Signature, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a request by their names in the graph, defaults filled in."""
    defaults = signature.defaults
    required = signature.inputs
    if len(tensors) > len(required) or (len(tensors) < len(required) and not defaults):
        sent = ",".join(sorted(tensors))
        raise invalid_argument(
            f"input size does not match signature: {len(tensors)}!={len(required)} "
            f"len({{{sent}}}) != len({{{','.join(sorted(required))}}}). "
            f"Sent extra: {{{','.join(sorted(tensors.keys() - required.keys()))}}}. "
            f"Missing but required: {{{','.join(sorted(required.keys() - tensors.keys()))}}}."
        )
    feeds = {}
    for alias, info in required.items():
        if alias in tensors:
            feeds[info.name] = tensors[alias]
        elif alias in defaults:
            feeds[info.name] = from_proto(defaults[alias], alias)
        else:
            raise invalid_argument(
                f"Signature input alias: {alias}(feed name: {info.name}) not found in request and no default "
                f"value provided. Inputs expected to be in the request {{{','.join(sorted(tensors))}}}, or "
                f"default input alias set: {','.join(sorted(defaults))}"
            )
    return feeds


def _bind_outputs(signature: Signature, output_filter: Sequence[str]) -> Mapping[str, str]:
    """The names in the graph of the outputs wanted, by the names that clients use."""
    if not output_filter:
        return signature.all_outputs
    fetches: dict[str, str] = {}
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{{{','.join(sorted(signature.outputs))}}}."
            )
        if alias in fetches:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
        fetches[alias] = signature.outputs[alias].name
    return fetches


def _required(servable: Servable, name: str, complaint: str) -> Signature:
    signature = servable.signature(name)
    if signature is None:
        raise invalid_argument(complaint + (name or DEFAULT_SIGNATURE))
    return signature


def _check_predict_method(signature: Signature) -> None:
    method = signature.definition.method_name
    if method not in (PREDICT, CLASSIFY, REGRESS):
        raise ServingError(
            Code.INTERNAL,
            f"Expected prediction signature method_name to be one of {{{PREDICT}, {CLASSIFY}, {REGRESS}}}. "
            f"Was: {method}",
        )


def _check_method(signature: Signature, expected: str, kind: str) -> None:
    method = signature.definition.method_name
    if method != expected:
        raise invalid_argument(f"Expected {kind} signature method_name to be {expected}. Was: {method}")


def _debug_string(signature: Signature) -> str:
    return text_format.MessageToString(signature.definition)


def _serialized_examples(request: Any) -> Tensor:
    """The examples of an Input message, serialised, the context put before each."""
    kind = request.WhichOneof("kind")
    prefix = b""
    if kind == "example_list_with_context":
        prefix = request.example_list_with_context.context.SerializeToString()
    examples = getattr(request, kind).examples if kind else ()
    if not examples:
        raise invalid_argument("Input is empty.")
    strings = [prefix + example.SerializeToString() for example in examples]
    return Tensor(DT_STRING, (len(strings),), strings=strings)


def _read_classification(signature: Signature, outputs: Outputs, count: int) -> Classification:
    """The outputs of a classify signature; raises INVALID_ARGUMENT where they are not of the form it promises."""
    columns: dict[str, Tensor] = {}
    for key, dtype in (("classes", DT_STRING), ("scores", DT_FLOAT)):
        if key in signature.outputs:
            columns[key] = outputs[signature.outputs[key].name]
            _check_column(key, columns[key], dtype, count)
    widths = [column.shape[1] for column in columns.values()]
    if len(set(widths)) > 1:
        raise invalid_argument(f"Tensors class and score should match in dim_size(1). Got {widths[0]} vs. {widths[1]}")
    width = widths[0]
    labels = columns["classes"].strings if "classes" in columns else [b""] * (count * width)
    scores: Sequence[Any] = columns["scores"].values() if "scores" in columns else [0.0] * (count * width)
    pairs = list(zip(labels, scores, strict=True))
    return Classification([pairs[row * width : (row + 1) * width] for row in range(count)])


def _check_column(key: str, column: Tensor, dtype: int, count: int) -> None:
    if len(column.shape) != 2:
        shape = ",".join(map(str, column.shape))
        raise invalid_argument(f"Expected Tensor shape: [batch_size num_classes] but got [{shape}]")
    if column.dtype != dtype:
        wanted = "DT_STRING" if dtype == DT_STRING else "DT_FLOAT"
        raise invalid_argument(f"Expected {key} Tensor of {wanted}. Got: {_data_type_name(column.dtype)}")
    if column.shape[0] != count:
        raise invalid_argument(f"Expected {key} output batch size of {count}. Got: {column.shape[0]}")


def _read_regression(signature: Signature, outputs: Outputs, count: int) -> Regression:
    """The output of a regress signature; raises INVALID_ARGUMENT where it is not of the form it promises."""
    output = outputs[signature.outputs["outputs"].name]
    shape = output.shape
    if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"[{','.join(map(str, shape))}]"
        )
    if shape[0] != count:
        raise invalid_argument(f"Input batch size did not match output batch size: {count} vs. {shape[0]}")
    if output.dtype != DT_FLOAT:
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: {_data_type_name(output.dtype)}")
    values: Any = output.values()
    return Regression(list(values))


def _data_type_name(dtype: int) -> str:
    return DataType.Name(dtype)
