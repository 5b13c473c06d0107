"""The protocol buffer messages of TensorFlow and TensorFlow Serving, without TensorFlow's Python front end.

Importing any generated message of the `tensorflow` package would run that package's `__init__`, which takes
seconds and hundreds of megabytes that a server has no use for. While the messages are imported here, a bare
package that has only the path stands in for it; a later `import tensorflow` is not affected.

The messages that the tensorflow-serving-api wheel leaves out are declared here, with the field numbers of
their .proto files in TensorFlow Serving.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_GENERATED = {
    "classification_pb2": "tensorflow_serving.apis",
    "get_model_metadata_pb2": "tensorflow_serving.apis",
    "get_model_status_pb2": "tensorflow_serving.apis",
    "inference_pb2": "tensorflow_serving.apis",
    "input_pb2": "tensorflow_serving.apis",
    "model_management_pb2": "tensorflow_serving.apis",
    "model_pb2": "tensorflow_serving.apis",
    "predict_pb2": "tensorflow_serving.apis",
    "prediction_log_pb2": "tensorflow_serving.apis",
    "regression_pb2": "tensorflow_serving.apis",
    "file_system_storage_path_source_pb2": "tensorflow_serving.config",
    "model_server_config_pb2": "tensorflow_serving.config",
    "example_pb2": "tensorflow.core.example",
    "tensor_pb2": "tensorflow.core.framework",
    "types_pb2": "tensorflow.core.framework",
    "config_pb2": "tensorflow.core.protobuf",
    "meta_graph_pb2": "tensorflow.core.protobuf",
}


def tensorflow_directory() -> str:
    """The directory of the installed tensorflow package, found without importing it.

    Raises ImportError where TensorFlow is not installed.
    """
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("TensorFlow is not installed")
    return spec.submodule_search_locations[0]


def _import_generated() -> dict[str, ModuleType]:
    stand_in = None
    if "tensorflow" not in sys.modules:
        stand_in = ModuleType("tensorflow")
        stand_in.__path__ = [tensorflow_directory()]
        sys.modules["tensorflow"] = stand_in
    try:
        return {name: importlib.import_module(f"{package}.{name}") for name, package in _GENERATED.items()}
    finally:
        if stand_in is not None:
            del sys.modules["tensorflow"]


def _declare(name: str, fields: dict[str, tuple[int, str]]) -> Any:
    """A message class `name` whose fields are `number, type`; a type may be repeated or a wrapped scalar."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"launchpad/{name}.proto", package="launchpad.modelserver", syntax="proto3"
    )
    file.dependency.append("google/protobuf/wrappers.proto")
    message = file.message_type.add(name=name)
    for field_name, (number, kind) in fields.items():
        field = message.field.add(name=field_name, number=number)
        repeated, kind = kind.startswith("repeated "), kind.removeprefix("repeated ")
        field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
        if kind[0].isupper():
            field.type = field.TYPE_MESSAGE
            local = kind in _declared
            field.type_name = f".launchpad.modelserver.{kind}" if local else f".google.protobuf.{kind}"
            if local:
                file.dependency.append(f"launchpad/{kind}.proto")
        else:
            field.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.Default()
    pool.Add(file)
    _declared.add(name)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"launchpad.modelserver.{name}"))


_declared: set[str] = set()
importlib.import_module("google.protobuf.wrappers_pb2")
_modules = _import_generated()


def _message(module: str, name: str) -> Any:
    return getattr(_modules[module], name)


PredictRequest = _message("predict_pb2", "PredictRequest")
PredictResponse = _message("predict_pb2", "PredictResponse")
ClassificationRequest = _message("classification_pb2", "ClassificationRequest")
ClassificationResponse = _message("classification_pb2", "ClassificationResponse")
RegressionRequest = _message("regression_pb2", "RegressionRequest")
RegressionResponse = _message("regression_pb2", "RegressionResponse")
MultiInferenceRequest = _message("inference_pb2", "MultiInferenceRequest")
MultiInferenceResponse = _message("inference_pb2", "MultiInferenceResponse")
GetModelMetadataRequest = _message("get_model_metadata_pb2", "GetModelMetadataRequest")
GetModelMetadataResponse = _message("get_model_metadata_pb2", "GetModelMetadataResponse")
SignatureDefMap = _message("get_model_metadata_pb2", "SignatureDefMap")
GetModelStatusRequest = _message("get_model_status_pb2", "GetModelStatusRequest")
GetModelStatusResponse = _message("get_model_status_pb2", "GetModelStatusResponse")
ModelVersionStatus = _message("get_model_status_pb2", "ModelVersionStatus")
ReloadConfigRequest = _message("model_management_pb2", "ReloadConfigRequest")
ReloadConfigResponse = _message("model_management_pb2", "ReloadConfigResponse")
PredictionLog = _message("prediction_log_pb2", "PredictionLog")
ModelSpec = _message("model_pb2", "ModelSpec")
Input = _message("input_pb2", "Input")
ModelServerConfig = _message("model_server_config_pb2", "ModelServerConfig")
ModelConfig = _message("model_server_config_pb2", "ModelConfig")
Example = _message("example_pb2", "Example")
TensorProto = _message("tensor_pb2", "TensorProto")
MetaGraphDef = _message("meta_graph_pb2", "MetaGraphDef")
SignatureDef = _message("meta_graph_pb2", "SignatureDef")
ConfigProto = _message("config_pb2", "ConfigProto")
RunOptions = _message("config_pb2", "RunOptions")
DataType = _modules["types_pb2"].DataType  # type: ignore[attr-defined]

BatchingParameters = _declare(
    "BatchingParameters",
    {
        "max_batch_size": (1, "Int64Value"),
        "batch_timeout_micros": (2, "Int64Value"),
        "max_enqueued_batches": (3, "Int64Value"),
        "num_batch_threads": (4, "Int64Value"),
        "thread_pool_name": (5, "StringValue"),
        "allowed_batch_sizes": (6, "repeated int64"),
        "pad_variable_length_inputs": (7, "bool"),
        "enable_large_batch_splitting": (8, "BoolValue"),
        "max_execution_batch_size": (9, "Int64Value"),
    },
)
PrometheusConfig = _declare("PrometheusConfig", {"enable": (1, "bool"), "path": (2, "string")})
MonitoringConfig = _declare("MonitoringConfig", {"prometheus_config": (1, "PrometheusConfig")})
SSLConfig = _declare(
    "SSLConfig",
    {
        "server_key": (1, "string"),
        "server_cert": (2, "string"),
        "custom_ca": (3, "string"),
        "client_verify": (4, "bool"),
    },
)

__all__ = ["Message", "tensorflow_directory"]
