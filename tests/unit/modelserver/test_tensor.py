"""Tensors are cut, joined, padded and put into messages without changing a value."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchpad.modelserver.predict_codec import read_request, write_response
from launchpad.modelserver.protos import PredictRequest, PredictResponse, TensorProto
from launchpad.modelserver.status import ServingError
from launchpad.modelserver.tensor import DT_FLOAT, DT_HALF, DT_INT8, DT_INT64, DT_STRING, Tensor, concatenate, pad
from launchpad.modelserver.tensor_proto import fill_proto, from_proto


def _floats(array: Any) -> Tensor:
    array = np.asarray(array, np.float32)
    return Tensor(DT_FLOAT, array.shape, array.tobytes())


def _array(tensor: Tensor) -> Any:
    return np.array(tensor.values(), np.float32).reshape(tensor.shape)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(0, 3))
def test_rows_that_are_joined_are_cut_apart_again(sizes: list[int], width: int) -> None:
    parts = [_floats(np.random.rand(size, width, 2)) for size in sizes]
    joined = concatenate(parts)
    assert joined.shape == (sum(sizes), width, 2)
    start = 0
    for part in parts:
        cut = joined.rows(start, start + part.shape[0])
        assert cut.shape == part.shape and bytes(cut.data) == bytes(part.data)
        start += part.shape[0]


def test_strings_are_joined_and_cut_too() -> None:
    joined = concatenate(
        [Tensor(DT_STRING, (1, 2), strings=[b"a", b"b"]), Tensor(DT_STRING, (1, 2), strings=[b"", b"d"])]
    )
    assert list(joined.rows(1, 2).strings) == [b"", b"d"]


def test_padding_repeats_the_first_element() -> None:
    padded = pad(_floats([[[1, 2], [3, 4]]]), (1, 3, 3))
    assert _array(padded).tolist() == [[[1, 2, 1], [3, 4, 1], [1, 1, 1]]]
    with pytest.raises(ServingError):
        pad(_floats(np.zeros((1, 0))), (1, 2))


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"dtype": DT_FLOAT, "float_val": [7.0]}, [7.0] * 3),
        ({"dtype": DT_FLOAT}, [0.0] * 3),
        ({"dtype": DT_FLOAT, "float_val": [1, 2, 3, 4]}, [1.0, 2.0, 3.0]),
        ({"dtype": DT_FLOAT, "tensor_content": struct.pack("3f", 1, 2, 3)}, [1.0, 2.0, 3.0]),
        ({"dtype": DT_INT8, "int_val": [1, 255, -129]}, [1, -1, 127]),
        ({"dtype": DT_HALF, "half_val": [0x3C00]}, [1.0] * 3),
        ({"dtype": DT_STRING, "string_val": [b"a", b"b"]}, [b"a", b"b", b"b"]),
    ],
)
def test_elements_come_from_the_content_or_the_list_and_the_last_is_repeated(
    fields: dict[str, Any], values: list[Any]
) -> None:
    message = TensorProto(**fields)
    message.tensor_shape.dim.add(size=3)
    assert list(from_proto(message, "x").values()) == values


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": DT_FLOAT, "tensor_content": b"123"},
        {"dtype": 0},
        {"dtype": 20},
        {"dtype": DT_STRING, "tensor_content": b"123"},
    ],
)
def test_a_message_that_is_no_tensor_is_refused(fields: dict[str, Any]) -> None:
    message = TensorProto(**fields)
    message.tensor_shape.dim.add(size=3)
    with pytest.raises(ServingError) as refused:
        from_proto(message, "alias")
    assert refused.value.message == "tensor parsing error: alias"


@pytest.mark.parametrize("size", [-1, 1 << 40])
def test_a_shape_that_cannot_be_held_is_refused(size: int) -> None:
    message = TensorProto(dtype=DT_FLOAT, float_val=[1.0])
    message.tensor_shape.dim.add(size=size)
    with pytest.raises(ServingError):
        from_proto(message, "x")


class _Servable:
    name, version = "m", 3


@pytest.mark.parametrize("as_content", [False, True])
@pytest.mark.parametrize(
    "tensor",
    [
        _floats([[1.5, 2.5]]),
        _floats(np.zeros((2, 0))),
        _floats(3.0),
        Tensor(DT_INT64, (2,), struct.pack("2q", -1, 5)),
        Tensor(DT_STRING, (2,), strings=[b"\xff", b""]),
    ],
)
def test_a_response_written_by_hand_is_what_protobuf_would_write(tensor: Tensor, as_content: bool) -> None:
    data = write_response({"y": tensor}, _Servable(), "sig", as_content=as_content)  # type: ignore[arg-type]
    expected = PredictResponse()
    expected.model_spec.name, expected.model_spec.signature_name = "m", "sig"
    expected.model_spec.version.value = 3
    fill_proto(expected.outputs["y"], tensor, as_content=as_content)
    assert PredictResponse.FromString(data) == expected


def test_a_request_is_read_with_its_spec_and_filter() -> None:
    message = PredictRequest(output_filter=["a"])
    message.model_spec.name, message.model_spec.version_label = "m", "stable"
    fill_proto(message.inputs["x"], _floats([1, 2]), as_content=True)
    call = read_request(message.SerializeToString())
    assert (call.name, call.label, call.version, list(call.output_filter)) == ("m", "stable", None, ["a"])
    assert _array(call.inputs()["x"]).tolist() == [1, 2]
    with pytest.raises(ServingError):
        read_request(b"\xff\xff")
