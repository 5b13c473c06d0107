"""The Locust users that the load generator is compared with, as Locust's documentation has them."""

from __future__ import annotations

import time
from typing import Any

import grpc
import grpc.experimental.gevent as grpc_gevent
import orjson
from grpc_interceptor import ClientInterceptor
from locust import FastHttpUser, User, task

from launchpad.client import PREDICT
from launchpad.modelserver import protos
from tests.benchmarks.loadgen_setting import PATH, REST_BODY, grpc_request

grpc_gevent.init_gevent()
DOCUMENT = orjson.loads(REST_BODY)


class FastJson(FastHttpUser):
    @task
    def ask(self) -> None:
        self.client.post(PATH, json=DOCUMENT)


class FastBytes(FastHttpUser):
    @task
    def ask(self) -> None:
        self.client.post(PATH, data=REST_BODY, headers={"Content-Type": "application/json"})


class LocustInterceptor(ClientInterceptor):  # type: ignore[misc]
    """As in Locust's guide to testing other systems."""

    def __init__(self, environment: Any) -> None:
        super().__init__()
        self.env = environment

    def intercept(self, method: Any, request_or_iterator: Any, call_details: Any) -> Any:
        response = None
        exception = None
        start_perf_counter = time.perf_counter()
        response_length = 0
        try:
            response = method(request_or_iterator, call_details)
            response_length = response.result().ByteSize()
        except grpc.RpcError as e:
            exception = e
        self.env.events.request.fire(
            request_type="grpc",
            name=call_details.method,
            response_time=(time.perf_counter() - start_perf_counter) * 1000,
            response_length=response_length,
            response=response,
            context=None,
            exception=exception,
        )
        return response


class LocustGrpc(User):
    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._channel = grpc.insecure_channel(self.host)
        self._predict = grpc.intercept_channel(self._channel, LocustInterceptor(environment=environment)).unary_unary(
            PREDICT,
            request_serializer=protos.PredictRequest.SerializeToString,
            response_deserializer=protos.PredictResponse.FromString,
        )
        self._request = grpc_request()

    @task
    def ask(self) -> None:
        self._predict(self._request)
