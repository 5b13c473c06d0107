"""Examples come back from disk as they were saved, and an answer is right or wrong."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from launchpad.examples import TOLERANCE, Examples, same_answer

NAMES = st.text("abcxyz_-./:% é0", min_size=1, max_size=8)
DTYPES = st.sampled_from(["float32", "uint8", "int64"])


@st.composite
def examples(draw) -> Examples:
    rows = draw(st.integers(0, 4))

    def arrays():
        shape = st.lists(st.integers(1, 3), max_size=2).map(lambda dims: (rows, *dims))
        return hnp.arrays(DTYPES, shape)

    strings = st.lists(st.binary(max_size=6), min_size=rows, max_size=rows)
    signatures = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    return Examples(
        inputs={name: draw(st.dictionaries(NAMES, arrays() | strings, min_size=1, max_size=2)) for name in signatures},
        outputs={name: draw(st.dictionaries(NAMES, arrays(), min_size=1, max_size=2)) for name in signatures},
        labels=draw(st.none() | hnp.arrays("int64", rows)),
    )


def plain(values):
    return values if isinstance(values, list) else (values.dtype.name, values.shape, values.tobytes())


@settings(max_examples=50, deadline=None)
@given(examples())
def test_examples_come_back_as_they_were_saved(saved):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "examples.npz"
        saved.save(path)
        loaded = Examples.load(path)
    for kind in ("inputs", "outputs"):
        there, back = getattr(saved, kind), getattr(loaded, kind)
        assert {s: {n: plain(v) for n, v in named.items()} for s, named in back.items()} == {
            s: {n: plain(v) for n, v in named.items()} for s, named in there.items()
        }
    assert (saved.labels is None) == (loaded.labels is None)
    assert saved.labels is None or np.array_equal(saved.labels, loaded.labels)
    assert len(loaded) == len(saved)


EXPECTED = np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)


def test_an_answer_within_the_tolerance_is_right():
    assert same_answer(EXPECTED, EXPECTED)
    assert same_answer(EXPECTED, EXPECTED + TOLERANCE / 2)


@pytest.mark.parametrize(
    "given_back",
    [EXPECTED + 2 * TOLERANCE, EXPECTED[::-1], EXPECTED[:1], EXPECTED.ravel(), np.full_like(EXPECTED, np.nan)],
    ids=["too far", "other rows", "too few", "other shape", "NaN"],
)
def test_any_other_answer_is_wrong(given_back):
    assert not same_answer(EXPECTED, given_back)
