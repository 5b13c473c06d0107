"""JSON requests and answers, to the letter of TensorFlow Serving."""

from __future__ import annotations

import json
import math
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchpad.modelserver import json_request
from launchpad.modelserver.json_request import read_examples, read_predict
from launchpad.modelserver.json_response import write_outputs, write_predictions
from launchpad.modelserver.json_value import decimals, parse_object, quote
from launchpad.modelserver.status import Code, ServingError
from launchpad.modelserver.tensor import (
    DT_BFLOAT16,
    DT_BOOL,
    DT_DOUBLE,
    DT_FLOAT,
    DT_HALF,
    DT_INT8,
    DT_INT32,
    DT_INT64,
    DT_STRING,
    DT_UINT16,
    DT_UINT64,
    Tensor,
)


def _read(body: str | bytes, **types: int) -> json_request.PredictInputs:
    return read_predict(body if isinstance(body, bytes) else body.encode(), lambda name: types or {"x": DT_FLOAT})


def _error(body: str | bytes, **types: int) -> str:
    with pytest.raises(ServingError) as refused:
        _read(body, **types)
    assert refused.value.code is Code.INVALID_ARGUMENT
    return refused.value.message


_NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.integers(-3, 3))
_LEAVES = st.one_of(_NUMBERS, st.booleans(), st.none(), st.text(max_size=3), st.just({"b64": "AAAA"}))
_NESTS = st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
_REGULAR = st.integers(0, 3).flatmap(
    lambda width: st.lists(st.lists(_NUMBERS, min_size=width, max_size=width), min_size=1, max_size=4)
)


@given(st.sampled_from(["instances", "inputs"]), st.one_of(_NESTS, _REGULAR), st.sampled_from([1, 2, 7, 9]))
def test_the_quick_reader_reads_what_the_exact_one_reads(key: str, values: Any, dtype: int) -> None:
    body = json.dumps({key: values}).encode()
    quick = json_request._quick(body, lambda name: {"x": dtype})
    if quick is None:
        return
    try:
        exact = json_request._exact(body, lambda name: {"x": dtype})
    except ServingError as refused:  # RapidJSON's last bit can push the largest float beyond the largest float
        assert "3.40282346638528" in refused.message and "loss of precision" in refused.message
        return
    assert (quick.signature, quick.rows) == (exact.signature, exact.rows)
    ours, theirs = quick.tensors["x"], exact.tensors["x"]
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    if dtype == DT_DOUBLE:  # RapidJSON, like the original, may be off by the last bits of a double
        assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-14, abs=1e-300)
    else:
        assert list(ours.values()) == list(theirs.values())


@pytest.mark.parametrize("body", ['{"instances": [[0], 0]}', '{"inputs": [[0], 1]}', '{"instances": [0, [0]]}'])
def test_a_number_beside_a_list_is_no_tensor(body: str) -> None:
    with pytest.raises(ServingError):
        _read(body, x=DT_FLOAT)


def test_a_nest_that_is_not_regular_takes_no_more_memory_than_it_is_long() -> None:
    """By its first elements it has 400 × 400 × 400 numbers."""
    body = f'{{"instances": [[[{",".join("0" * 400)}]{",0" * 399}]{",0" * 399}]}}'
    tracemalloc.start()
    try:
        _error(body)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_the_quick_reader_takes_the_common_requests() -> None:
    for body, dtype in (
        ('{"instances": [[1, 2.5], [3, 4]]}', DT_FLOAT),
        ('{"signature_name": "s", "instances": [[[0.5]]]}', DT_FLOAT),
        ('{"inputs": [1, 2]}', DT_INT64),
        ('{"instances": [{"b64": "AAAA"}, "text"]}', DT_STRING),
    ):
        assert json_request._quick(body.encode(), lambda name, dtype=dtype: {"x": dtype}) is not None


@pytest.mark.parametrize(
    ("body", "dtype", "values"),
    [
        ("[1, 2]", DT_INT32, [1, 2]),
        ("[127, -129]", DT_INT8, [127, 127]),
        ("[18446744073709551615]", DT_UINT64, [2**64 - 1]),
        ("[true, false]", DT_BOOL, [True, False]),
        ("[0.1]", DT_DOUBLE, [0.1]),
        ('[{"b64": "QUI="}, {"b64": "QUI"}, {"b64": "Q U I ="}, "é"]', DT_STRING, [b"AB"] * 3 + ["é".encode()]),
    ],
)
def test_values_become_elements_of_the_inputs_type(body: str, dtype: int, values: list[Any]) -> None:
    assert list(_read(f'{{"instances": {body}}}', x=dtype).tensors["x"].values()) == values


def test_nan_and_infinities_are_numbers() -> None:
    values = _read('{"instances": [NaN, Infinity, -Infinity, Inf]}').tensors["x"].values()
    assert math.isnan(values[0]) and list(values[1:]) == [math.inf, -math.inf, math.inf]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"instances": [1.5]}', "JSON Value: 1.5 Type: Number is not of expected type: int32"),
        ('{"instances": [3000000000]}', "JSON Value: 3000000000 Type: Number is not of expected type: int32"),
        ('{"instances": [[1], 2]}', "Failed to process element: 1 of 'instances' list."),
        ('{"inputs": [[1], 2]}', "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
        ('{"inputs": [1, [2]]}', "Encountered list at unexpected level: 1 expected < 1"),
        ('{"inputs": [[1], [2, 3]]}', "Encountered list at unexpected size: 2 at level: 1 expected size: 1"),
        ('{"instances": [[1, 2], [[3], [4]]]}', "Expecting shape [2] but got: [2,1]"),
        ('{"instances": [null]}', "JSON Value: null Type: Null is not of expected type: int32"),
        ('{"instances": [{"x": 1}, 2]}', "Expecting object but got list at item 1 of input list"),
        ('{"instances": [1, {"x": 2}]}', "Expecting value/list but got object at item 1 of input list"),
        ('{"inputs": {"y": 1}}', "Missing named input: x in 'inputs' object."),
        ('{"signature_name": 5, "instances": [1]}', "'signature_name' key must be a string value."),
        ("[" * 100_000, "nested too deeply"),
        (b'{"instances": ["\xff"]}', "Invalid encoding in string."),
    ],
)
def test_a_request_that_does_not_fit_is_told_where(body: str | bytes, message: str) -> None:
    assert message in _error(body, x=DT_INT32)


def test_of_equal_keys_the_first_counts() -> None:
    assert parse_object(b'{"a": 1, "a": 2}') == {"a": 1}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            [1.0, 0.1, 1e21, 1e22, 1e-5, 1e-7, -2.5e-10, 5e300, 0.0],
            "[1.0, 0.1, 1e21, 1e22, 0.00001, 1e-7, -2.5e-10, 5e300, 0.0]",
        ),
        ([123456789012345680000.0], "[123456789012345680000.0]"),
        ({"a": {}, "b": '\x01"\n/é'}, '{\n    "a": {},\n    "b": "\\u0001\\"\\n/é"\n}'),
        (16777217.5, "16777218.0"),
    ],
)
def test_values_are_quoted_as_by_rapidjson(value: Any, text: str) -> None:
    assert quote(value) == text


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_single_precision_numbers_read_back_as_themselves(value: float) -> None:
    (text,) = decimals([value], single=True)
    assert struct.pack("f", float(text)) == struct.pack("f", value)
    assert "." in text or "e" in text


def test_numbers_have_six_digits_where_these_suffice_and_nine_where_not() -> None:
    values = struct.unpack("6f", struct.pack("6f", 0.9, 0.100000024, 61731.3945, 8388611.0, 5e19, 4))
    assert decimals(values, single=True) == ["0.9", "0.100000024", "61731.3945", "8388611.0", "5e+19", "4.0"]
    assert decimals([1 / 3, 0.5], single=False) == ["0.33333333333333331", "0.5"]


def test_rows_and_columns_are_laid_out_as_by_the_original() -> None:
    tensor = Tensor(DT_INT64, (2, 2), struct.pack("4q", 1, 2, 3, 4))
    assert write_predictions({"y": tensor}) == b'{\n    "predictions": [[1, 2], [3, 4]\n    ]\n}'
    assert json.loads(write_outputs({"y": tensor, "z": Tensor(DT_BOOL, (1,), b"\x01")})) == {
        "outputs": {"y": [[1, 2], [3, 4]], "z": [True]}
    }
    names = Tensor(DT_STRING, (1,), strings=[b"\xff\x00"])
    assert write_predictions({"y_bytes": names}) == b'{\n    "predictions": [{"b64": "/wA="}\n    ]\n}'
    assert write_predictions({"y": names}) == b'{\n    "predictions": ["\xff\\u0000"\n    ]\n}'


def test_outputs_of_different_batch_sizes_cannot_be_rows() -> None:
    with pytest.raises(ServingError) as refused:
        write_predictions({"a": Tensor(DT_BOOL, (1,), b"\x01"), "b": Tensor(DT_BOOL, (2,), b"\x01\x01")})
    assert refused.value.message == "Tensor name: b has inconsistent batch size: 2 expecting: 1"


@pytest.mark.parametrize(("dtype", "name"), [(DT_HALF, "half"), (DT_UINT16, "uint16"), (DT_BFLOAT16, "bfloat16")])
@pytest.mark.parametrize("write", [write_predictions, write_outputs])
def test_types_that_the_original_does_not_write_are_refused(write: Any, dtype: int, name: str) -> None:
    with pytest.raises(ServingError) as refused:
        write({"y": Tensor(dtype, (2,), bytes(4))})
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert refused.value.message == f"Failed to write JSON value for tensor type: {name}"


def test_examples_take_the_kind_of_feature_from_their_values() -> None:
    body = b'{"examples": [{"f": [1.5], "i": [1, true], "s": ["a", {"b64": "QQ=="}], "none": []}]}'
    features = read_examples(body).input.example_list.examples[0].features.feature
    assert list(features["f"].float_list.value) == [1.5]
    assert list(features["i"].int64_list.value) == [1, 1]
    assert list(features["s"].bytes_list.value) == [b"a", b"A"]
    for bad in ('{"f": [1, 1.5]}', '{"f": [null]}', '{"f": [[1]]}', '{"f": 18446744073709551615}', "3"):
        with pytest.raises(ServingError):
            read_examples(b'{"examples": [%s]}' % bad.encode())
