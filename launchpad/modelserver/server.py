"""The whole server: built from the options, started when the models are there, stopped without losing a request."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from glob import escape as glob_escape
from glob import glob
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

from . import config
from .batching import BatchingOptions, BatchQueue, BatchRunner, BatchScheduler
from .execution import DirectRunner, Workers
from .flags import Options
from .grpc_api import GrpcApi, Health, ModelService, PredictionService
from .http import GatheredWriter, HttpServer
from .http2 import Http2Server
from .inference import Inference
from .listening import Port, StartError, reason
from .manager import ManagerOptions, ModelManager
from .metrics import Metrics
from .rest import RestApi
from .runtime import Session, Step, prepare
from .servable import Plan, Runner, Servable
from .status import Code, ServingError
from .warmup import has_requests, replay

_log = logging.getLogger(__name__)
_STALL_CHECK_S = 5.0
_STEER_S = 0.25
_LINGER_S = 3.0
"""How long a server that leaves its ports to another waits for handshakes under way, and for clients to go over."""


@dataclass(frozen=True)
class _Settings:
    """What the options and the files they name come to."""

    batch_threads: config.BatchThreads
    batching: BatchingOptions
    metrics_path: str | None
    session_config: bytes

    @classmethod
    def read(cls, options: Options) -> _Settings:
        return cls(
            config.batch_threads(options),
            config.batching_options(options),
            config.metrics_path(options),
            config.session_config(options),
        )


class ServableLoader:
    """Loads and warms up versions, on threads of the manager's."""

    def __init__(
        self,
        options: Options,
        settings: _Settings,
        inference: Inference,
        metrics: Metrics,
        answered: Callable[[], None],
    ) -> None:
        """answered: see `BatchScheduler`."""
        self._options = options
        self._settings = settings
        self._inference = inference
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._tags = options.saved_model_tags.split(",")
        threads = options.rest_api_num_threads + options.grpc_max_threads
        self._workers = Workers("run", min(threads, 256))
        batch_threads = settings.batch_threads
        self._scheduler = BatchScheduler(batch_threads.count, batch_threads.name, self._loop, answered)

    def load(self, name: str, version: int, path: str) -> Servable:
        """The version in directory `path`, warm. Raises ServingError."""
        batching = self._batching(path)
        if batching is not None:
            batching.validate()
        started = perf_counter()
        try:
            session = Session(path, self._tags, self._settings.session_config)
        except ServingError:
            self._count(self._metrics.load_attempt_count.add, path, "fail")
            raise
        self._count(self._metrics.load_attempt_count.add, path, "success")
        micros = int((perf_counter() - started) * 1e6)
        self._count(lambda: self._metrics.load_latency.add(path, amount=micros))
        servable = Servable(name, version, session, self._runner_factory(batching))
        if self._options.enable_model_warmup and has_requests(path):
            self._warm_up(servable, path)
        return servable

    def _batching(self, path: str) -> BatchingOptions | None:
        if not self._options.enable_batching:
            return None
        if self._options.enable_per_model_batching_parameters:
            return config.per_model_batching(path)
        return self._settings.batching

    def _runner_factory(self, batching: BatchingOptions | None) -> Callable[[Step, Plan, bool], Runner]:
        def make(step: Step, plan: Plan, whole: bool) -> Runner:
            if batching is None or not whole:
                return DirectRunner(step, self._workers, self._loop)
            return BatchRunner(step, plan.feeds, BatchQueue(batching), self._scheduler, self._metrics)

        return make

    def _warm_up(self, servable: Servable, path: str) -> None:
        started = perf_counter()
        try:
            iterations = max(1, self._options.num_request_iterations_for_warmup)
            count = replay(servable, path, self._inference, iterations)
        except ServingError:
            servable.close()
            raise
        except OSError as error:
            servable.close()
            raise ServingError(Code.INTERNAL, f"cannot read the warmup requests of {path}: {error.strerror}") from None
        seconds = perf_counter() - started
        self._count(lambda: self._metrics.warmup_latency.cell(path, "OK").add(int(seconds * 1e6)))
        _log.info(
            "model %s version %d warmed up with %d requests in %.2f s",
            servable.name,
            servable.version,
            count,
            seconds,
        )

    def _count(self, count: Callable[..., None], *arguments: Any) -> None:
        self._loop.call_soon_threadsafe(count, *arguments)

    def stop(self) -> None:
        """Let the threads end."""
        self._workers.stop()
        self._scheduler.stop()


class ModelServer:
    """The server. `run` is its whole life."""

    def __init__(self, options: Options) -> None:
        """Raises ConfigError for a file that cannot be obeyed. To be called on the event loop."""
        self._options = options
        settings = _Settings.read(options)
        self._models = self._read_models()
        prepare(onednn=any(map(_gains_by_onednn, self._models.values())))
        self._metrics = Metrics(batching=options.enable_batching)
        self._inference = Inference(self._metrics, check_method_names=options.enable_signature_method_name_check)
        writer = GatheredWriter()
        self._loader = ServableLoader(options, settings, self._inference, self._metrics, writer.flush)
        self._manager = ModelManager(
            self._loader.load,
            ManagerOptions(
                options.file_system_poll_wait_seconds,
                options.num_load_threads,
                options.num_unload_threads,
                options.max_num_load_retries,
                options.load_retry_interval_micros,
                options.allow_version_labels_for_unavailable_models,
            ),
        )
        rest = RestApi(
            self._manager,
            self._inference,
            self._metrics,
            threads=options.rest_api_num_threads,
            timeout_ms=options.rest_api_timeout_in_ms,
            cors=options.rest_api_enable_cors_support,
            metrics_path=settings.metrics_path,
        )
        self._health = Health()
        self._http = HttpServer(rest.handle, options.max_request_bytes, writer)
        self._http2 = Http2Server(
            self._grpc_api().handle, options.max_request_bytes, config.max_concurrent_streams(options)
        )
        self._tls = config.ssl_context(options)
        self._stop = asyncio.Event()
        self._leaving = False
        self._tasks: list[asyncio.Task[None]] = []
        self._rest_port: Port | None = None
        self._grpc_port: Port | None = None
        self._unix_socket: asyncio.Server | None = None

    def _grpc_api(self) -> GrpcApi:
        options = self._options
        prediction = PredictionService(
            self._manager,
            self._inference,
            self._metrics,
            as_content=options.enable_serialization_as_tensor_content,
        )
        calls = prediction.calls() | ModelService(self._manager, self.reconfigure, self._spawn).calls()
        healthy = options.enable_grpc_healthcheck_service
        return GrpcApi(
            calls | (self._health.calls() if healthy else {}),
            self._health.streams() if healthy else {},
            threads=options.grpc_max_threads,
            max_message_bytes=options.max_request_bytes,
        )

    def _read_models(self) -> dict[str, config.ModelSettings]:
        if self._options.model_config_file:
            return config.read_model_config(self._options.model_config_file)
        return config.single_model(self._options)

    async def run(self) -> None:
        """Load the models, serve until SIGTERM or SIGINT, finish what is in flight.

        Raises StartError where a port is taken, ServingError where a model cannot be loaded.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        if self._options.share_ports:
            loop.add_signal_handler(signal.SIGUSR2, self._leave)
        self._bind_ports()
        loading = loop.create_task(self._load_models())
        stopping = loop.create_task(self._stop.wait())
        await asyncio.wait([loading, stopping], return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            _calm_collector()
            await self._listen()
            await stopping
            if self._leaving:
                await self._hand_over()
            await self._drain()
        loading.cancel()
        for task in self._tasks:
            task.cancel()
        self._loader.stop()

    def _bind_ports(self) -> None:
        """Take the ports, so as to fail at once where one is taken; they open when the models are there."""
        options = self._options
        if options.rest_api_port and options.rest_api_port == options.port:
            raise StartError("--rest_api_port cannot be the same as --port")
        if not options.rest_api_port and not options.port and not options.grpc_socket_path:
            raise StartError("nothing to serve: --port, --rest_api_port and --grpc_socket_path are all off")
        self._rest_port = _bind(options, options.rest_api_port)
        self._grpc_port = _bind(options, options.port)

    async def _load_models(self) -> None:
        new = self._manager.configure(self._models)
        await self._manager.poll_once()
        self._spawn(self._manager.poll())
        await self._manager.wait_until_available(new)
        self._manager.initial_load_done()

    def _spawn(self, work: Any) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    async def _listen(self) -> None:
        options = self._options
        if self._rest_port:
            self._rest_port.open(self._http.connection)
            _log.info("REST API at %s", self._rest_port)
        if self._grpc_port:
            self._grpc_port.open(self._http2.connection, self._tls)
            _log.info("gRPC API at %s%s", self._grpc_port, " with TLS" if self._tls else "")
        if options.grpc_socket_path:
            await self._open_socket(options.grpc_socket_path)
        self._spawn(self._watch_connections())
        if options.model_config_file and options.model_config_file_poll_wait_seconds > 0:
            self._spawn(self._poll_config())

    async def _open_socket(self, path: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._unix_socket = await loop.create_unix_server(self._http2.connection, path, ssl=self._tls)
        except OSError as error:
            raise StartError(f"cannot listen on {path}: {reason(error)}") from None
        _log.info("gRPC API at unix:%s", path)

    def _close_ports(self) -> None:
        listeners: tuple[Port | asyncio.Server | None, ...] = (self._rest_port, self._grpc_port, self._unix_socket)
        for listener in listeners:
            if listener:
                listener.close()

    async def _watch_connections(self) -> None:
        while True:
            await asyncio.sleep(_STALL_CHECK_S)
            self._http.drop_stalled()
            self._http2.drop_stalled()

    async def _poll_config(self) -> None:
        """Read the model config file again and again, and obey it when it has changed."""
        while True:
            await asyncio.sleep(self._options.model_config_file_poll_wait_seconds)
            try:
                models = config.read_model_config(self._options.model_config_file, instead=bool(self._models))
                if models != self._models:
                    await self.reconfigure(models)
            except (config.ConfigError, ServingError) as error:
                _log.error("the model config file is not obeyed: %s", error)

    async def reconfigure(self, models: dict[str, config.ModelSettings]) -> None:
        """Serve these models and no others; return when the new ones are available. Raises ServingError."""
        new = self._manager.configure(models)
        self._models = models
        _log.info("model configuration: %s", ", ".join(sorted(models)) or "no models")
        await self._manager.poll_once()
        await self._manager.wait_until_available(new, "model")

    def _leave(self) -> None:
        self._leaving = True
        self._stop.set()

    async def _hand_over(self) -> None:
        """Leave the ports to the server that shares them: new connections are its from now on, and the clients of
        the present ones are asked to come anew, for as long as most of them take to do so."""
        _log.info("leaving the ports to another server")
        for port in filter(None, (self._rest_port, self._grpc_port)):
            port.steer_to_successor()
        await asyncio.sleep(_STEER_S)
        self._close_ports()
        self._health.leave()
        self._http.announce_leave()
        self._http2.announce_leave()
        limit = monotonic() + _LINGER_S
        while self._busy_connections() and monotonic() < limit:
            await asyncio.sleep(0.01)

    async def _drain(self) -> None:
        _log.info("stopping: no new connections, finishing what is in flight")
        self._close_ports()
        self._health.leave()
        self._http.close_idle()
        self._http2.close_idle()
        limit = monotonic() + self._options.shutdown_grace_seconds
        while self._busy_connections() and monotonic() < limit:
            await asyncio.sleep(0.01)
        if self._busy_connections():
            _log.warning("stopped with %d connections still busy", self._busy_connections())
        else:
            _log.info("stopped")

    def _busy_connections(self) -> int:
        return len(self._http.connections) + len(self._http2.connections)


_SMALL_MODEL_BYTES = 4 << 20


def _gains_by_onednn(model: config.ModelSettings) -> bool:
    """Whether oneDNN's kernels save more than they cost: with convolutions, and with all but small models.

    They bring tensors into a layout of their own on every run, which takes longer than a small dense model's whole run
    without them.
    """
    versions = os.path.join(glob_escape(model.base_path), "*")
    variables = glob(os.path.join(versions, "variables", "variables.data-*"))
    if not variables or max(map(os.path.getsize, variables)) >= _SMALL_MODEL_BYTES:
        return True
    return any(b"Conv" in Path(graph).read_bytes() for graph in glob(os.path.join(versions, "saved_model.pb")))


def _calm_collector() -> None:
    """Keep Python's cycle collector off what the start has made, and from looking after every few requests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _bind(options: Options, number: int) -> Port | None:
    return Port(options.host, number, share=options.share_ports) if number else None
