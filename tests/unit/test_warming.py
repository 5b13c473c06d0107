"""Warmup requests of a version that is published with other batch sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from launchpad import warming
from launchpad.errors import EnvironmentFault
from launchpad.examples import Examples
from launchpad.export import records

PIXELS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version with warmup requests of one and two examples for two signatures, as the export writes them."""
    inputs = {"serving_default": {"pixels": PIXELS}, "bytes": {"image": [b"a picture", b"another"]}}
    folder = tmp_path / "1" / warming.FOLDER
    folder.mkdir(parents=True)
    records.write(folder / warming.FILE, "m", Examples(inputs, {"serving_default": {}, "bytes": {}}, None), (1, 2))
    (folder / warming.DESCRIPTION).write_text("{}")
    return tmp_path / "1"


def read(version: Path) -> list[dict[str, np.ndarray]]:
    """The requests' tensors, as TensorFlow reads them."""
    logs = [
        prediction_log_pb2.PredictionLog.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(str(version / warming.FOLDER / warming.FILE))
    ]
    return [{name: tf.make_ndarray(tensor) for name, tensor in log.predict_log.request.inputs.items()} for log in logs]


def test_every_batch_size_is_covered_for_each_signature(version):
    linked = version / "linked"
    linked.hardlink_to(version / warming.FOLDER / warming.FILE)
    before = linked.read_bytes()

    warming.cover(version, (1, 2, 3, 4, 5))

    requests = read(version)
    pixels = [request["pixels"] for request in requests if "pixels" in request]
    assert [len(rows) for rows in pixels] == [1, 2, 3, 4, 5]
    assert all((rows == pixels[0][0]).all() for rows in pixels)
    images = [request["image"] for request in requests if "image" in request]
    assert [rows.shape for rows in images] == [(1,), (2,), (3,), (4,), (5,)]
    assert images[-1].tolist() == [images[0][0]] * 5
    assert linked.read_bytes() == before
    assert not (version / warming.FOLDER / warming.DESCRIPTION).exists()


def test_what_covers_the_sizes_already_stays(version):
    before = (version / warming.FOLDER / warming.FILE).stat()
    warming.cover(version, (1, 2))
    assert (version / warming.FOLDER / warming.FILE).stat() == before


def test_a_version_without_warmup_requests_gets_none(tmp_path):
    warming.cover(tmp_path, (1, 2))
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_cut_off_is_told(version):
    path = version / warming.FOLDER / warming.FILE
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(EnvironmentFault, match="truncated record"):
        warming.cover(version, (1, 2, 3))


def test_limits_leave_an_even_choice_with_the_smallest_and_the_largest():
    sizes = tuple(range(1, 1001))
    assert warming.within_limits(sizes[:64], 4, 3000) == list(sizes[:64])
    chosen = warming.within_limits(sizes, 4, 100)
    assert len(chosen) == 250 and (chosen[0], chosen[-1]) == (1, 1000)
    heavy = warming.within_limits((1, 2, 4, 8, 16, 32, 64), 1, 400_000)
    assert sum(heavy) * 400_000 <= warming.MAX_BYTES and heavy[-1] == 64
    assert warming.within_limits((64,), 1, 10_000_000) == [64]
