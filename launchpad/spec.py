"""`pipeline.yaml` as typed, validated, immutable objects. Reading the file, with its line numbers, is `declaration`'s.

Every field says its unit in its name and its purpose in its description; the descriptions travel into the JSON
Schema that editors use.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from launchpad.modelserver.flags import FLAGS, nearest

INT64 = 2**63 - 1
"""Largest number of the server's text protos."""
LARGEST_BATCH = 1_000_000
"""Far more examples than any batch has, and few enough to count them up."""

Positive = Annotated[int, Field(ge=1, le=INT64)]
BatchSize = Annotated[int, Field(ge=1, le=LARGEST_BATCH)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Image = Annotated[str, Field(pattern="^[!-~]+$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Shape = Annotated[tuple[Positive, ...], Field(description="Dimensions behind the batch dimension.")]


class Strict(BaseModel):
    """No unknown key, no coerced type, no number without end, no change after reading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


# --- models ---------------------------------------------------------------------------------------------------


class ParseTensor(Strict):
    dtype: Literal["float32", "float64", "uint8", "int32", "int64"] = "float32"
    """Type of the serialised tensor."""
    shape: Shape


class DecodeRaw(Strict):
    dtype: Literal["uint8", "int16", "int32", "int64", "float32", "float64"] = "uint8"
    """Type of the little-endian values."""
    shape: Shape


class DecodeImage(Strict):
    channels: Literal[1, 3] = 1
    """1 for grey, 3 for RGB."""


class Resize(Strict):
    height: Positive
    width: Positive
    method: Literal["bilinear", "nearest", "area"] = "bilinear"


class Reshape(Strict):
    shape: Shape


class Normalize(Strict):
    mean: float = 0.0
    """Subtracted first."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Divided by afterwards."""


class Nothing(Strict):
    """A step without settings."""


class Step(Strict):
    """One step of preprocessing: a mapping with exactly one key. A step without settings may be given by name."""

    decode_base64: Nothing | None = None
    """Web-safe base64 text to bytes."""
    parse_tensor: ParseTensor | None = None
    """A serialised TensorProto to a tensor."""
    decode_raw: DecodeRaw | None = None
    """Raw little-endian bytes to a tensor; one vectorised operation for the whole batch."""
    decode_image: DecodeImage | None = None
    """PNG, JPEG, GIF or BMP of any size to pixels 0..255, [height, width, channels]."""
    resize: Resize | None = None
    """Pixels to another height and width."""
    reshape: Reshape | None = None
    """The same values in another shape."""
    normalize: Normalize | None = None
    """(value - mean) / scale, as float32."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {value: {}} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        bare = [name for name in cls.model_fields if name in ("decode_base64", "decode_image", "normalize")]
        mapping = handler.resolve_ref_schema(handler(core)) | {"minProperties": 1, "maxProperties": 1}
        return {"anyOf": [mapping, {"enum": bare}]}

    @model_validator(mode="after")
    def _has_one_key(self) -> Step:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"a step has exactly one of: {', '.join(Step.model_fields)}")
        return self

    @property
    def name(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def settings(self) -> Any:
        return getattr(self, self.name)


Steps = tuple[Step, ...]


class Input(Strict):
    dtype: Literal["float32", "float64", "uint8", "int32", "int64", "string"] = "float32"
    shape: Annotated[tuple[Positive, ...], Field(description="Dimensions behind the batch dimension.")] = ()
    name: str | None = None
    """Key of the input in the signature; the model's own input name unless given."""


class Signature(Strict):
    input: Input | None = None
    """What a client sends. Left out: a string when the first step decodes one, else what the model takes."""
    steps: Steps = ()
    """From what a client sends to what `preprocessing` starts from."""


class Acceptance(Strict):
    accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    """Least accuracy on the held-out data; a gate of the export."""
    parity: Annotated[float, Field(gt=0)] = 1e-5
    """Largest difference allowed between the model and each of its signatures."""
    parity_examples: Positive = 500
    """Held-out examples that the parity gate sends through each signature."""


class Warmup(Strict):
    enabled: bool = True
    """Write warmup requests that the server replays before a version turns AVAILABLE."""
    requests: Positive = 50
    """Requests that the warmup stage sends to each signature of the running server."""


class VersionPolicy(Strict):
    latest: Positive | None = None
    """Serve the newest so many versions."""
    specific: tuple[Positive, ...] | None = None
    """Serve these versions."""
    all: bool = False
    """Serve every version there is."""

    @model_validator(mode="after")
    def _has_one_key(self) -> VersionPolicy:
        if len(self.model_fields_set) != 1:
            raise ValueError("a version policy has exactly one of: latest, specific, all")
        return self


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # files have lists, a discriminated union checks strictly


class BatchQueue(Strict):
    """Batching parameters of one queue: what a model may set for itself."""

    max_batch_size: BatchSize
    """Most examples in a batch. Larger: more throughput, more latency for the first in the batch."""
    batch_timeout_micros: Annotated[int, Field(ge=0, le=INT64)] = 0
    """Longest wait for a batch to fill, in µs. 0: a free thread takes what there is."""
    max_enqueued_batches: Positive = 10
    """Batches that may wait; more are refused (503). Bounds the queueing delay."""
    allowed_batch_sizes: Annotated[tuple[Positive, ...], BeforeValidator(_as_tuple)] = ()
    """Sizes that batches are padded up to; increasing, the last equal to max_batch_size. Empty: any size."""
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    """Split a request that does not fit into the batch being formed, and run at most max_execution_batch_size at once;
    what is larger than max_batch_size is refused all the same."""
    max_execution_batch_size: BatchSize | None = None
    """With splitting: most examples that the model is run on at once; at most max_batch_size."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> BatchQueue:
        sizes = self.allowed_batch_sizes
        if sizes and (list(sizes) != sorted(set(sizes)) or sizes[-1] != self.execution_size):
            raise ValueError(
                f"allowed_batch_sizes must increase and end with {self.execution_size}, the largest batch that "
                "is run; the server would not load the model"
            )
        if self.max_execution_batch_size and not self.enable_large_batch_splitting:
            raise ValueError("max_execution_batch_size needs enable_large_batch_splitting: true")
        if self.execution_size > self.max_batch_size:
            raise ValueError("max_execution_batch_size must not exceed max_batch_size")
        return self

    @property
    def execution_size(self) -> int:
        """Most examples that the model is run on at once."""
        return self.max_execution_batch_size or self.max_batch_size

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Every batch size that the model can be run with, increasing."""
        return self.allowed_batch_sizes or tuple(range(1, self.execution_size + 1))


class Batching(BatchQueue):
    """Batching parameters of the server: the queue's, and the thread pool that all models share."""

    num_batch_threads: Positive
    """Batches that run at once, over all models."""
    thread_pool_name: str = "batch_threads"


def _off(value: Any) -> Any:
    return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false


def _batching_kind(value: Any) -> str:
    return "parameters" if isinstance(value, (dict, BatchQueue)) else "word"


BackendName = Literal["docker", "native", "embedded"]

Word = Annotated[Literal["off", "tuned"], Tag("word"), WithJsonSchema({"enum": ["off", "tuned", False]})]
ServerBatching = Annotated[
    Word | Annotated[Batching, Tag("parameters")], Discriminator(_batching_kind), BeforeValidator(_off)
]
ModelBatching = Annotated[
    Word | Annotated[BatchQueue, Tag("parameters")], Discriminator(_batching_kind), BeforeValidator(_off)
]


def _names_its_function(source: str) -> str:
    if source.endswith((".py", ".py:")):
        raise ValueError("name the function that returns the model, such as path/to/module.py:build")
    return source


class Model(Strict):
    source: Annotated[str, AfterValidator(_names_its_function)]
    """`path/to/module.py:function`, a `.keras` file, or a SavedModel directory."""
    version: Positive = 1
    """Version directory that the export writes. Raise it to publish beside the earlier ones."""
    data: str | None = None
    """`.npz` with x_train, y_train, x_test, y_test: to train on, to check and to load-test with."""
    seed: Seed = 0
    preprocessing: Steps = ()
    """Steps inside the graph that every signature ends with, such as normalize."""
    signatures: Annotated[dict[str, Signature], Field(min_length=1)] = {"serving_default": Signature()}
    """Named entry points. For a SavedModel: the ones that it must have."""
    acceptance: Acceptance = Acceptance()
    warmup: Warmup = Warmup()
    batching: ModelBatching | None = None
    """Parameters of this model's own queue; the server's `batching` unless given."""
    version_policy: VersionPolicy | None = None
    """Which versions are served; the newest unless given."""
    version_labels: dict[str, Positive] = {}
    """Names such as `stable` for versions."""

    @property
    def source_kind(self) -> Literal["function", "keras", "saved_model"]:
        if self.source.endswith(".keras"):
            return "keras"
        return "function" if ".py:" in self.source else "saved_model"


# --- serving --------------------------------------------------------------------------------------------------


def _known_flag(name: str) -> str:
    if name not in FLAGS:
        near = nearest(name)
        raise ValueError(
            "tensorflow_model_server has no such flag" + (f"; did you mean {near!r}?" if near in FLAGS else "")
        )
    if name in DECLARED_ELSEWHERE:
        raise ValueError(f"follows from {DECLARED_ELSEWHERE[name]}; set it there")
    return name


def _fits(flag: str, value: Any) -> bool:
    kind = FLAGS[flag].type
    return type(value) is kind or (kind is float and type(value) is int)


DECLARED_ELSEWHERE = {
    "port": "serving.ports.grpc",
    "rest_api_port": "serving.ports.rest",
    "model_name": "models",
    "model_base_path": "models",
    "model_config_file": "models",
    "enable_batching": "serving.batching",
    "batching_parameters_file": "serving.batching",
    "enable_per_model_batching_parameters": "the models' batching",
    "monitoring_config_file": "serving.monitoring",
}
"""Flags that other parts of the declaration decide, with the part."""


class Ports(Strict):
    rest: Port = 8501
    """0 turns REST off, and the metrics page with it."""
    grpc: Port = 8500
    """0 turns gRPC off, but for a UNIX socket in /tmp: tensorflow_model_server does not run without gRPC."""

    def of(self, protocol: str) -> int:
        """The port of a protocol of traffic; 0 where it is off."""
        return self.grpc if protocol == "grpc" else self.rest


class Monitoring(Strict):
    enabled: bool = True
    path: Annotated[str, Field(pattern="^/")] = "/monitoring/prometheus/metrics"
    """Path of the Prometheus page on the REST port."""


class Container(Strict):
    """What the docker backend grants the server's container."""

    memory: Annotated[str, Field(pattern="^[1-9][0-9]*[kmg]$")] | None = None
    """Most memory, such as 512m or 4g; beyond it the kernel kills the server. No limit unless given."""
    cpus: Annotated[float, Field(gt=0)] | None = None
    """Processors' worth of time, such as 1.5. No limit unless given."""
    sysctls: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+(\.[A-Za-z0-9_-]+)+$")], int | str] = {}
    """Kernel settings of the container's own network, such as net.core.somaxconn; set at run time."""
    restart: Literal["never", "on-failure", "unless-stopped"] = "on-failure"
    """When the engine starts a server again that has ended; on-failure: three times at most."""
    log_size: Annotated[str, Field(pattern="^[1-9][0-9]*[kmg]$")] = "10m"
    """Size at which the engine starts a new log file."""
    log_files: Positive = 3
    """Log files that the engine keeps."""


class Serving(Strict):
    image: Image = "tensorflow/serving:2.20.0"
    """Base image; the exporter must not be newer than it."""
    backend: Literal["auto", BackendName] = "auto"
    """Where the server runs; `auto` takes the first that can work."""
    gpu: Literal["none", "prefer", "require"] = "prefer"
    """Whether the server gets the machine's GPUs; `require` refuses to run without one."""
    models: Literal["baked", "mounted"] = "baked"
    """docker: whether the image holds the models or the container mounts them, to publish versions while it runs."""
    binary: Annotated[str, Field(min_length=1)] = "tensorflow_model_server"
    """native: the server program, a name on the PATH or a path."""
    container: Container = Container()
    ports: Ports = Ports()
    batching: ServerBatching = "off"
    """`off`, `tuned` (from serving/tuned.yaml), or parameters."""
    flags: dict[Annotated[str, AfterValidator(_known_flag)], bool | int | float | str] = {}
    """Further flags of tensorflow_model_server, by name."""
    monitoring: Monitoring = Monitoring()
    ready_timeout_s: Annotated[float, Field(gt=0)] = 120
    """How long the launch waits for every model to be AVAILABLE."""


# --- load tests, objectives -----------------------------------------------------------------------------------


class Traffic(Strict):
    model: str
    signature: str = "serving_default"
    protocol: Literal["rest", "rest_columns", "grpc"] = "rest"
    """REST in the row or the column format, or gRPC Predict (numbers as tensor_content)."""
    batch: Positive = 1
    """Examples in each request."""
    weight: Positive = 1
    """Share of the requests, relative to the other lines."""

    @property
    def line(self) -> str:
        """How results name these requests."""
        protocol = "" if self.protocol == "rest" else f" {self.protocol}"
        return f"{self.model} {self.signature}{protocol}" + (f" x{self.batch}" if self.batch > 1 else "")


class LoadShape(Strict):
    """How the load changes over the run, as factors of `users` or `rate_rps`."""

    kind: Literal["constant", "soak", "ramp", "steps", "spike", "wave"]
    """constant and soak: high all along; a soak is one that lasts. ramp: from low to high. steps: from low to high in
    equal steps. spike: low, high in the middle tenth. wave: from low to high and back, as a day goes."""
    low: Annotated[float, Field(ge=0)] = 0.2
    high: Annotated[float, Field(gt=0)] = 1.0
    steps: Annotated[int, Field(ge=2)] = 5

    @model_validator(mode="after")
    def _rises(self) -> LoadShape:
        if self.low >= self.high:
            raise ValueError("low must be less than high")
        return self


class Load(Strict):
    """What every profile has."""

    duration_s: Annotated[float, Field(gt=0)]
    """Measured time; it starts when all users have, or with the first arrival."""
    shape: LoadShape | None = None
    """Change of the load over the run; the same all along unless given."""
    traffic: tuple[Traffic, ...] = ()
    """Who is asked what; empty: every model's first signature alike."""


class ClosedLoop(Load):
    """Users that wait for each answer before they ask again. Their load falls when the server slows down."""

    loop: Literal["closed"] = "closed"
    users: Positive
    spawn_rate: Annotated[float, Field(gt=0)] = 100
    """Users started a second."""
    think_time_ms: Annotated[float, Field(ge=0)] = 0
    """A user's pause between an answer and its next request."""

    @property
    def in_flight(self) -> int:
        """Most requests that are in flight at once."""
        return self.users

    @property
    def title(self) -> str:
        return f"{self.users} users in a closed loop"


class OpenLoop(Load):
    """Requests that are due at times fixed in advance, whatever the server does; latency counts from then."""

    loop: Literal["open"]
    rate_rps: Annotated[float, Field(gt=0)]
    """Requests due a second."""
    arrivals: str = "poisson"
    """`poisson`, `constant`, or the path of a trace with one timestamp in seconds a line."""
    seed: Seed = 0
    max_in_flight: Positive = 512
    """Connections of a process; further requests wait in the generator, which counts as latency."""

    @property
    def in_flight(self) -> int:
        """Requests in flight that a server within its objective may have to hold; a lower bound."""
        return 1

    @property
    def title(self) -> str:
        kind = self.arrivals if self.arrivals in ("poisson", "constant") else "replayed"
        return f"{self.rate_rps:g} requests/s in an open loop, {kind} arrivals"


def _loop(value: Any) -> Any:
    return value.get("loop", "closed") if isinstance(value, dict) else getattr(value, "loop", "closed")


Profile = Annotated[
    Annotated[ClosedLoop, Tag("closed")] | Annotated[OpenLoop, Tag("open")],
    Discriminator(_loop, custom_error_type="loop", custom_error_message="loop should be 'closed' or 'open'"),
]


class LoadTest(Strict):
    profile: str
    """The profile that runs unless another is named."""
    baseline: str | None = None
    """Id of a run that reports compare theirs with, beside the run before it."""
    profiles: Annotated[dict[str, Profile], Field(min_length=1)]


class Objectives(Strict):
    p99_ms: Annotated[float, Field(gt=0)] | None = None
    """Highest 99th percentile of the response time, for each model."""
    error_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Highest share of failed requests, for each model."""
    throughput_rps: Annotated[float, Field(gt=0)] | None = None
    """Least successful requests a second, over all models."""

    @property
    def tolerated_errors(self) -> float:
        """The error rate that tuning and autotuning hold: one in a hundred where none is declared."""
        return 0.01 if self.error_rate is None else self.error_rate


# --- tune -----------------------------------------------------------------------------------------------------


class Tune(Strict):
    """What `invoke tune` looks for. Each model is tuned by itself, with the line of the default profile's traffic that
    asks it most."""

    goal: Literal["rate", "latency", "resource"] = "rate"
    """rate: the highest rate at which p99 and the error rate hold. latency: the lowest p99 at rate_rps. resource: the
    least processor time at rate_rps with p99 and the error rate held."""
    rate_rps: Annotated[float, Field(gt=0)] | None = None
    """latency, resource: the rate to serve."""
    p99_ms: Annotated[float, Field(gt=0)] | None = None
    """Latency to hold, as the load generator sees it; objectives.p99_ms unless given."""
    models: tuple[str, ...] = ()
    """Models to tune; all unless given."""
    request_threads: tuple[Positive, ...] = ()
    """Numbers of rest_api_num_threads and grpc_max_threads to consider; the declared flags alone unless given."""
    candidates: Positive = 2
    """Configurations that are measured beside off, the widespread one and the declared one."""
    time_limit_s: Annotated[float, Field(ge=60)] = 600
    """When it is over, no further measurement begins."""

    @model_validator(mode="after")
    def _has_its_rate(self) -> Tune:
        if self.goal != "rate" and self.rate_rps is None:
            raise ValueError(f"goal {self.goal} needs rate_rps, the rate to serve")
        return self


# --- autotune -------------------------------------------------------------------------------------------------


class Between(Strict):
    """Bounds of a parameter, both of them allowed values."""

    min: Annotated[int, Field(ge=0, le=INT64)]
    max: Annotated[int, Field(ge=0, le=INT64)]

    @model_validator(mode="after")
    def _rises(self) -> Between:
        if self.min > self.max:
            raise ValueError("min must not exceed max")
        return self

    def clamp(self, value: int) -> int:
        """Return the allowed value that is nearest."""
        return max(self.min, min(self.max, value))


class Bounds(Strict):
    """What autotune never leaves."""

    max_batch_size: Between = Between(min=1, max=64)
    batch_timeout_micros: Between = Between(min=0, max=5000)
    num_batch_threads: Between = Between(min=1, max=8)

    @model_validator(mode="after")
    def _at_least_one(self) -> Bounds:
        if self.max_batch_size.min < 1 or self.num_batch_threads.min < 1:
            raise ValueError("max_batch_size and num_batch_threads are at least 1")
        if self.max_batch_size.max > LARGEST_BATCH:
            raise ValueError(f"max_batch_size is at most {LARGEST_BATCH}")
        return self


class Autotune(Strict):
    """How `invoke autotune` keeps batching right while traffic changes. Having the section makes the server read each
    version's own batching parameters, which is the way in which they change without a restart."""

    policy: Literal["threshold", "model"] = "threshold"
    """threshold: larger batches while latency is under its limit and load over its floor, smaller ones over twice the
    limit. model: what the simulator finds best for the present rate; needs a profile of the model."""
    models: tuple[str, ...] = ()
    """Models to adjust; those that are batched unless given."""
    p99_ms: Annotated[float, Field(gt=0)] | None = None
    """Latency to hold, as the server measures it; objectives.p99_ms unless given."""
    load_floor_rps: Annotated[float, Field(ge=0)] = 50
    """threshold: below this rate nothing grows."""
    interval_s: Annotated[float, Field(gt=0)] = 5
    """Time between looks at the metrics page."""
    window_s: Annotated[float, Field(gt=0)] = 15
    """Time that a decision looks back on; also how long a change is on trial."""
    min_requests: Positive = 200
    """Fewer requests in the window decide nothing."""
    confirmations: Positive = 2
    """Looks in a row that must ask for the same change; windows in a row in which a change must be worse to be taken
    back while the objective holds."""
    cool_down_s: Annotated[float, Field(ge=0)] = 60
    """Least time between a change and the next."""
    changes_per_hour: Positive = 12
    """Most changes in any hour; a return to the last good parameters is always allowed."""
    min_gain: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """model: least share by which p99 must be expected to fall. An expected p99 is no nearer than about 0.15, and
    a change costs seconds of a higher one."""
    tolerance: Annotated[float, Field(ge=0)] = 0.2
    """A change after which p99 is higher by more than this share is taken back."""
    bounds: Bounds = Bounds()


# --- monitoring -----------------------------------------------------------------------------------------------


class Monitor(Strict):
    """How `invoke monitor` looks at the server, and how long the store keeps what is in it."""

    interval_s: Annotated[float, Field(ge=0.1, le=86_400)] = 2
    """Time between looks at the metrics page."""
    keep_samples_days: Positive | None = 30
    """Age at which samples, decisions of autotune and the record of stages are deleted; null keeps them."""
    keep_runs_days: Positive | None = None
    """Age at which runs are deleted from the store; their folders stay. Null keeps them."""


# --- past this machine ----------------------------------------------------------------------------------------


class Replicas(Strict):
    min: Positive = 3
    """Fewest replicas, whatever the load."""
    max: Positive = 10
    """Most replicas that the autoscaler may make; a peak that needs more is refused."""

    @model_validator(mode="after")
    def _ordered(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) exceeds max ({self.max})")
        return self


class Demand(Strict):
    """The load that the cluster is to hold."""

    usual_rps: Annotated[float, Field(gt=0)]
    """Requests a second of an ordinary hour; the fewest replicas follow from it, with one to spare."""
    peak_rps: Annotated[float, Field(gt=0)]
    """Requests a second to hold even when one zone is lost; must fit into `replicas.max`."""

    @model_validator(mode="after")
    def _ordered(self) -> Demand:
        if self.usual_rps > self.peak_rps:
            raise ValueError(f"usual_rps ({self.usual_rps:g}) exceeds peak_rps ({self.peak_rps:g})")
        return self


Memory = Annotated[str, Field(pattern="^[1-9][0-9]*[KMGT]i$")]


class Resources(Strict):
    """What each pod is granted, in place of what was measured."""

    cpu: Annotated[float, Field(gt=0)] | None = None
    """Cores, requested and at most. Measured unless given: what the server used at capacity, up to the cores it had."""
    memory: Memory | None = None
    """Such as 2Gi, requested and at most. Measured unless given: the server's peak and a quarter more."""


Label = Annotated[str, Field(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]


class Gpu(Strict):
    """What the overlay `gpu` asks for."""

    count: Positive = 1
    """GPUs of each pod."""
    resource: Label = "nvidia.com/gpu"
    """Name under which nodes offer them."""
    node_selector: dict[Label, str] = {"nvidia.com/gpu.present": "true"}
    """Labels of the nodes that have them; this one is set by NVIDIA's GPU feature discovery."""
    taint: Label = "nvidia.com/gpu"
    """Key of the taint that keeps other pods off those nodes."""
    image: Image | None = None
    """Server image for those nodes, by digest; the one of the other overlays unless given."""


class Autoscaling(Strict):
    headroom: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Share of its measured capacity that a replica is to work at; the rest is for bursts while new pods warm up."""
    signal: Literal["requests", "in_flight"] = "requests"
    """What the overlay `keda` scales on: requests a second, or requests in flight, of each pod."""
    prometheus: Annotated[str, Field(pattern="^https?://")] = "http://prometheus-operated.monitoring.svc:9090"
    """Where KEDA asks for the signal."""
    scale_down_s: Annotated[int, Field(ge=0, le=3600)] = 300
    """How long the load must be lower before replicas are taken away."""


class ModelStore(Strict):
    """Where a pod's models come from."""

    source: Literal["image", "claim", "bucket"] = "image"
    """Baked into the image, a volume, or an object store."""
    claim: Annotated[str, Field(pattern="^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")] = "models"
    """claim: PersistentVolumeClaim that holds `<model>/<version>/`."""
    bucket: Annotated[str, Field(pattern="^(gs|s3)://[^/]+(/[^/]+)*$")] = "gs://models"
    """bucket: where `<model>/<version>/` lie."""


class Canary(Strict):
    weight: Annotated[int, Field(ge=0, le=100)] = 10
    """Percent of the requests that the second Deployment gets."""
    image: Image | None = None
    """Server image of the second Deployment, by digest; the same as the first's unless given."""
    gateway: str = "gateway"
    """Gateway that the route hangs on, `name` or `namespace/name`."""


class Generators(Strict):
    """The load generator in the cluster."""

    workers: Positive = 4
    """Pods that generate load."""
    image: Image | None = None
    """Image with this project's Python environment, by digest; see docs/kubernetes.md."""


class Kubernetes(Strict):
    namespace: Annotated[str, Field(pattern="^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)] = "default"
    registry: str | None = None
    """Registry and path that `invoke build --push` was given; the server image is pulled from there."""
    replicas: Replicas = Replicas()
    demand: Demand | None = None
    """Load to hold; `replicas` alone decides unless given."""
    zones: Positive = 3
    """Zones that replicas are spread over."""
    resources: Resources = Resources()
    autoscaling: Autoscaling = Autoscaling()
    drain_s: Annotated[int, Field(ge=1, le=600)] = 20
    """How long a pod that is to end goes on serving, while clients learn that it is leaving."""
    clients: tuple[str, ...] = ()
    """Further namespaces whose pods may send requests; the own one always may."""
    gpu: Gpu = Gpu()
    models: ModelStore = ModelStore()
    canary: Canary = Canary()
    monitoring: bool = True
    """Whether the cluster has the Prometheus operator: overlays then bring PodMonitor, rules and dashboard."""
    prometheus_namespace: str = "monitoring"
    """Namespace whose Prometheus may scrape the pods."""
    sysctls: bool = False
    """Whether nodes allow the sysctls of `serving.container.sysctls`, which Kubernetes counts as unsafe."""
    generators: Generators = Generators()
    price_per_hour: Annotated[float, Field(ge=0)] | None = None
    """Price of one replica for an hour, in any currency; `invoke plan` adds it up."""


GateName = Literal[
    "parity",
    "accuracy",
    "signatures",
    "operations",
    "lint",
    "artifacts",
    "image",
    "dockerfile",
    "digest",
    "manifests",
    "licences",
    "vulnerabilities",
    "cold-start",
    "objectives",
    "regression",
    "capacity",
    "soak",
    "rollback",
]
"""The gates of a release, in the order of its checklist."""


class Waiver(Strict):
    """A gate that a release may lack for a while. The checklist shows it."""

    gate: GateName
    reason: Annotated[str, Field(min_length=1)]
    expires: datetime.date
    """Last day on which the waiver counts."""


class Soak(Strict):
    """A load that lasts, to see what grows."""

    duration_s: Annotated[float, Field(ge=10)] = 300
    memory_mib_per_hour: Annotated[float, Field(gt=0)] = 100
    """Fastest growth of the server's memory, once it has settled."""


class Release(Strict):
    profile: str | None = None
    """Load-test profile that the release is judged by; the default one unless given."""
    capacity_rps: Annotated[float, Field(gt=0)] | None = None
    """Least rate of random arrivals at which p99 must hold; objectives.throughput_rps unless given."""
    regression: Annotated[float, Field(ge=0)] = 0.1
    """How much slower than the previous release a model's percentiles may surely be, as a share."""
    soak: Soak = Soak()
    waivers: tuple[Waiver, ...] = ()


class Pipeline(Strict):
    """The declaration as a whole."""

    name: Annotated[str, Field(pattern="^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    models: Annotated[dict[Annotated[str, Field(pattern="^[A-Za-z0-9._-]+$")], Model], Field(min_length=1)]
    serving: Serving = Serving()
    loadtest: LoadTest = LoadTest(profile="steady", profiles={"steady": ClosedLoop(users=16, duration_s=30)})
    objectives: Objectives = Objectives()
    tune: Tune = Tune()
    autotune: Autotune | None = None
    """How `invoke autotune` works; without the section it does not."""
    monitor: Monitor = Monitor()
    kubernetes: Kubernetes = Kubernetes()
    release: Release = Release()
    store: str = "sqlite:///.launchpad/store.db"
    """SQLAlchemy URL of the run store; a relative SQLite path counts from the checkout."""

    def contradictions(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield (key path, message) for each reference between parts of the declaration that does not hold."""
        if self.loadtest.profile not in self.loadtest.profiles:
            yield ("loadtest", "profile"), _no_such("profile", self.loadtest.profile, self.loadtest.profiles)
        if self.release.profile and self.release.profile not in self.loadtest.profiles:
            yield ("release", "profile"), _no_such("profile", self.release.profile, self.loadtest.profiles)
        for name, profile in self.loadtest.profiles.items():
            for index, line in enumerate(profile.traffic):
                place: tuple[str | int, ...] = ("loadtest", "profiles", name, "traffic", index)
                if line.model not in self.models:
                    yield (*place, "model"), _no_such("model", line.model, self.models)
                elif line.signature not in self.models[line.model].signatures:
                    known = self.models[line.model].signatures
                    yield (*place, "signature"), _no_such("signature", line.signature, known)
                if not self.serving.ports.of(line.protocol):
                    yield (*place, "protocol"), f"{line.protocol} is off (serving.ports)"
        for name, model in self.models.items():
            if model.batching not in (None, "off") and self.serving.batching == "off":
                yield ("models", name, "batching"), "needs serving.batching, which sets the batch threads"
            if model.source_kind == "saved_model" and (
                model.preprocessing or any(s.steps or s.input for s in model.signatures.values())
            ):
                message = "a SavedModel keeps its own signatures: name them, without steps or preprocessing"
                yield ("models", name, "preprocessing" if model.preprocessing else "signatures"), message
        yield from self._tune_contradictions()
        yield from self._autotune_contradictions()
        for flag, value in self.serving.flags.items():
            if not _fits(flag, value):
                yield ("serving", "flags", flag), f"takes {FLAGS[flag].type.__name__}, not {value!r}"
        if self.serving.gpu == "require" and has_no_gpu_code(self.serving.image):
            yield ("serving", "gpu"), f"{self.serving.image} is the image for CPUs; the one for GPUs ends in -gpu"
        if self.serving.ports.rest == 0 and self.serving.ports.grpc == 0:
            yield ("serving", "ports"), "REST and gRPC are both off: nothing could reach the server"
        elif self.serving.ports.rest == self.serving.ports.grpc:
            yield ("serving", "ports"), "REST and gRPC need a port each: on one the server leaves REST out"
        yield from self._contradictions_in_kubernetes()

    def _contradictions_in_kubernetes(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        kubernetes, serving = self.kubernetes, self.serving
        if (
            kubernetes.models.source == "bucket"
            and kubernetes.models.bucket.startswith("s3:")
            and _reads_no_s3(serving)
        ):
            message = (
                f"{serving.image} cannot read s3:// (it cannot since 2.7); use gs://, a claim, or an image that can"
            )
            yield ("kubernetes", "models", "bucket"), message
        if kubernetes.sysctls and not serving.container.sysctls:
            yield ("kubernetes", "sysctls"), "serving.container.sysctls names none"
        for place, image in (("gpu", kubernetes.gpu.image), ("canary", kubernetes.canary.image)):
            if image and "@sha256:" not in image:
                yield ("kubernetes", place, "image"), "name the image by digest, such as registry/name@sha256:..."
        if kubernetes.replicas.min < 2 and kubernetes.zones > 1:
            message = f"one replica cannot survive the loss of a zone (kubernetes.zones is {kubernetes.zones})"
            yield ("kubernetes", "replicas", "min"), message

    def _tune_contradictions(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        for index, name in enumerate(self.tune.models):
            if name not in self.models:
                yield ("tune", "models", index), _no_such("model", name, self.models)

    def _autotune_contradictions(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.autotune is None:
            return
        for index, name in enumerate(self.autotune.models):
            if name not in self.models:
                yield ("autotune", "models", index), _no_such("model", name, self.models)
        if self.autotune.p99_ms is None and self.objectives.p99_ms is None:
            yield ("autotune",), "needs a latency to hold: objectives.p99_ms, or a p99_ms of its own"
        if self.serving.batching == "off":
            yield ("autotune",), "needs serving.batching, which sets the batch threads"
        if not self.serving.monitoring.enabled or not self.serving.ports.rest:
            yield ("autotune",), "needs the metrics page: serving.monitoring.enabled and a serving.ports.rest"

    def traffic(self, profile: Profile) -> tuple[Traffic, ...]:
        """The traffic lines of a profile, with the default filled in."""
        return profile.traffic or tuple(map(self.plain_traffic, self.models))

    def plain_traffic(self, model: str) -> Traffic:
        """Single examples to a model's first signature; over REST, unless that is off."""
        signature = next(iter(self.models[model].signatures))
        return Traffic(model=model, signature=signature, protocol="rest" if self.serving.ports.rest else "grpc")


def has_no_gpu_code(image: str) -> bool:
    """Tell whether an image is surely one without GPU code: a named tag of TensorFlow Serving's own for CPUs."""
    name, _, tag = image.partition(":")
    return name == "tensorflow/serving" and bool(tag) and "gpu" not in tag and "@" not in tag


def _reads_no_s3(serving: Serving) -> bool:
    """Tell whether the image is TensorFlow Serving's own from 2.7 on, which is built without S3."""
    name, _, tag = serving.image.partition(":")
    numbers = tag.split("-")[0].split(".")
    known = name == "tensorflow/serving" and all(number.isdigit() for number in numbers)
    return known and [int(number) for number in numbers] >= [2, 7]


def _no_such(kind: str, name: str, known: Any) -> str:
    return f"there is no {kind} {name!r}; declared: {', '.join(known)}"
