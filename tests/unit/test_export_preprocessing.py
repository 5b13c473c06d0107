"""Preprocessing in the graph undoes what a client did to its examples."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from launchpad.export import preprocessing
from launchpad.spec import Step

FEW = settings(max_examples=15, deadline=None)
PIXELS = hnp.arrays("uint8", (3, 12))


def steps(*declared) -> list[Step]:
    return [Step.model_validate(step) for step in declared]


def sent(chain: list[Step], examples: np.ndarray) -> tf.Tensor:
    return tf.constant([preprocessing.encode(chain, example) for example in examples])


def served(chain: list[Step], batch: tf.Tensor) -> np.ndarray:
    """Run the steps as the graph of a signature with a free batch dimension."""
    spec = tf.TensorSpec([None, *batch.shape[1:]], batch.dtype)
    return tf.function(lambda rows: preprocessing.apply(chain, rows), input_signature=[spec])(batch).numpy()


RAW = {"decode_raw": {"dtype": "uint8", "shape": (12,)}}
TENSOR = {"parse_tensor": {"dtype": "float32", "shape": (12,)}}
IMAGE = [{"decode_image": {"channels": 1}}, {"resize": {"height": 3, "width": 4}}, {"reshape": {"shape": (12,)}}]


@pytest.mark.parametrize(
    "declared",
    [[RAW], ["decode_base64", RAW], [TENSOR], ["decode_base64", TENSOR], IMAGE, ["decode_base64", *IMAGE]],
    ids=["raw", "base64 raw", "tensor", "base64 tensor", "image", "base64 image"],
)
@FEW
@given(examples=PIXELS)
def test_pixels_come_out_of_every_encoding_as_they_went_in(declared, examples):
    chain = steps(*declared)
    assert preprocessing.takes_strings(chain)
    np.testing.assert_array_equal(served(chain, sent(chain, examples)), examples)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "float32", "float64"])
def test_raw_bytes_are_little_endian_values_of_any_type(dtype):
    chain = steps({"decode_raw": {"dtype": dtype, "shape": (2, 2)}})
    examples = np.array([[1, 2, 3, 4], [100, 0, 7, 9]])
    batch = tf.constant([values.astype(f"<{np.dtype(dtype).str[1:]}").tobytes() for values in examples])
    np.testing.assert_array_equal(served(chain, batch), examples.reshape(2, 2, 2))


def test_base64_is_of_the_web_safe_alphabet():
    example = np.full(12, 255, np.uint8)
    text = preprocessing.encode(steps("decode_base64", RAW), example)
    assert text == base64.urlsafe_b64encode(example.tobytes())
    assert b"/" not in text and b"_" in text


@FEW
@given(
    hnp.arrays("float32", (2, 12), elements=st.floats(-1000, 1000, width=32)),
    st.floats(-200, 200),
    st.floats(0.1, 300),
)
def test_the_graph_normalises_as_the_reference_does(examples, mean, scale):
    chain = steps({"normalize": {"mean": mean, "scale": scale}}, {"reshape": {"shape": (3, 4)}})
    expected = preprocessing.reference(chain, examples)
    assert expected.shape == (2, 3, 4)
    np.testing.assert_allclose(served(chain, tf.constant(examples)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["bilinear", "nearest", "area"])
def test_images_of_any_size_are_brought_to_one(method):
    chain = steps({"decode_image": {"channels": 3}}, {"resize": {"height": 4, "width": 5, "method": method}})
    images = [np.full((height, width, 3), 40 * height, np.uint8) for height, width in ((1, 1), (4, 5), (6, 3))]
    batch = tf.constant([tf.io.encode_png(image).numpy() for image in images])
    found = served(chain, batch)
    assert found.shape == (3, 4, 5, 3)
    np.testing.assert_allclose(found[:, 0, 0, 0], [40, 160, 240], atol=1e-3)


def test_grey_is_made_of_colour_where_one_channel_is_declared():
    chain = steps(*IMAGE)
    red = np.zeros((3, 4, 3), np.uint8)
    red[..., 0] = 200
    found = served(chain, tf.constant([tf.io.encode_png(red).numpy()]))
    assert found.shape == (1, 12)
    assert 0 < found[0, 0] < 200


def test_jpeg_is_an_image_too():
    grey = np.full((3, 4, 1), 100, np.uint8)
    found = served(steps(*IMAGE), tf.constant([tf.io.encode_jpeg(grey).numpy()]))
    np.testing.assert_allclose(found, 100, atol=2)


@pytest.mark.parametrize("length", [11, 13, 24])
def test_bytes_of_the_wrong_length_fail_and_do_not_become_other_rows(length):
    with pytest.raises(tf.errors.InvalidArgumentError):
        served(steps(RAW), tf.constant([bytes(length)] * 2))


def test_a_tensor_of_another_shape_fails():
    other = tf.io.serialize_tensor(tf.zeros([11])).numpy()
    with pytest.raises(tf.errors.InvalidArgumentError):
        served(steps(TENSOR), tf.constant([other]))


def test_flat_examples_without_a_size_cannot_be_made_into_images():
    with pytest.raises(ValueError, match="add a resize step"):
        preprocessing.encode(steps({"decode_image": {"channels": 1}}), np.zeros(12, np.uint8))


def test_only_chains_that_begin_with_a_decoder_take_strings():
    assert not preprocessing.takes_strings(steps({"normalize": {}}))
    assert not preprocessing.takes_strings([])
