"""Warmup records: what the server replays before a version turns AVAILABLE."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from launchpad.examples import Examples
from launchpad.export import records
from launchpad.modelserver import protos

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)
TWO = Examples(
    inputs={"serving_default": {"pixels": ARRAY}, "bytes": {"raw": [b"one", b"two", b"three"]}},
    outputs={"serving_default": {}, "bytes": {}},
    labels=None,
)


def requests(path) -> list:
    """Read a record file by the server's messages: (signature, PredictRequest)."""
    found = []
    for record in tf.data.TFRecordDataset(str(path)):
        log = protos.PredictionLog.FromString(record.numpy())
        assert log.WhichOneof("log_type") == "predict_log"
        found.append(log.predict_log.request)
    return found


def many(signatures: int, row_bytes: int = 4) -> Examples:
    rows = np.zeros((2, row_bytes // 4), np.float32)
    names = [f"signature {number}" for number in range(signatures)]
    return Examples({name: {"x": rows} for name in names}, {name: {} for name in names}, None)


def test_every_signature_is_asked_with_every_batch_size(tmp_path):
    written = records.write(tmp_path / "r", "tiny", TWO, (1, 2, 8))
    found = requests(tmp_path / "r")
    assert [(r.model_spec.signature_name, next(iter(r.inputs.values())).tensor_shape.dim[0].size) for r in found] == [
        (signature, size) for size in (1, 2, 8) for signature in ("serving_default", "bytes")
    ]
    assert {r.model_spec.name for r in found} == {"tiny"}
    assert (written.records, written.batch_sizes, written.left_out) == (6, [1, 2, 8], [])


def test_batches_are_made_of_the_examples_in_turn(tmp_path):
    records.write(tmp_path / "r", "tiny", TWO, (5,))
    numbers, strings = requests(tmp_path / "r")
    np.testing.assert_array_equal(tf.make_ndarray(numbers.inputs["pixels"]), ARRAY[[0, 1, 2, 0, 1]])
    there = tf.make_ndarray(strings.inputs["raw"]).tolist()
    assert len(there) == 5
    assert set(there) <= set(TWO.inputs["bytes"]["raw"])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 600))
def test_there_are_never_more_records_than_the_server_takes(signatures, largest):
    sizes = list(range(1, largest + 1))
    kept = records._within_limits(many(signatures), sizes)
    assert len(kept) * signatures <= 1000
    assert kept == sorted(set(kept)) and set(kept) <= set(sizes)
    assert kept[-1] == largest
    assert len(kept) == 1 or kept[0] == 1
    assert kept == sizes or (len(kept) + 1) * signatures > 1000


def test_a_thousand_records_fit_and_what_is_left_out_is_told(tmp_path):
    written = records.write(tmp_path / "r", "tiny", many(4), range(1, 301))
    assert written.records == len(requests(tmp_path / "r")) == 1000
    assert len(written.left_out) == 50
    assert sorted([*written.batch_sizes, *written.left_out]) == list(range(1, 301))


@pytest.mark.parametrize("row_bytes", [100_000, 1_000_000])
def test_large_examples_make_fewer_records_that_still_hold_the_largest_batch(row_bytes):
    kept = records._within_limits(many(1, row_bytes), range(1, 31))
    assert sum(kept) * row_bytes <= records.MAX_BYTES
    assert kept[-1] == 30


def test_the_largest_batch_is_warmed_even_beyond_the_byte_limit():
    assert records._within_limits(many(1, 4_000_000), range(1, 101)) == [100]
