"""Which batching parameters each model really gets."""

from __future__ import annotations

import pytest

from launchpad.batching import effective
from launchpad.errors import DeclarationError

TEXT = """\
name: tiny
models:
  plain: {{source: m.py:f}}
  own: {{source: m.py:f{own}}}
serving:
  batching: {server}
"""
SERVER = "{max_batch_size: 16, num_batch_threads: 2}"


def of(declare, server: str, own: str = ""):
    return effective(declare(TEXT.format(server=server, own=own and f", batching: {own}")))


def sizes(found) -> dict[str, int | None]:
    return {name: queue and queue.max_batch_size for name, queue in found.queues.items()}


def test_models_share_the_servers_parameters(declare):
    found = of(declare, SERVER)
    assert sizes(found) == {"plain": 16, "own": 16}
    assert not found.per_model


def test_a_model_may_have_parameters_of_its_own(declare):
    found = of(declare, SERVER, "{max_batch_size: 4}")
    assert sizes(found) == {"plain": 16, "own": 4}
    assert found.per_model


def test_a_model_may_be_left_unbatched(declare):
    found = of(declare, SERVER, "off")
    assert sizes(found) == {"plain": 16, "own": None}
    assert found.per_model


def test_parameters_of_a_model_that_are_the_servers_need_no_file_of_their_own(declare):
    assert not of(declare, SERVER, "{max_batch_size: 16}").per_model


def test_every_batched_model_has_parameters_of_its_own_where_they_may_change(declare):
    text = TEXT.format(server=SERVER, own="") + "autotune: {p99_ms: 50}\n"
    assert effective(declare(text)).per_model


def test_nothing_is_batched_when_the_server_does_not(declare):
    found = of(declare, "off")
    assert found.server is None
    assert sizes(found) == {"plain": None, "own": None}
    assert not found.per_model


TUNED = """\
batching: {max_batch_size: 32, num_batch_threads: 4}
models:
  own: {max_batch_size: 8}
evidence: {run: 20260101-000000-abcd}
"""


@pytest.fixture
def tuned(tmp_path):
    def write(text: str) -> None:
        (tmp_path / "serving").mkdir(exist_ok=True)
        (tmp_path / "serving" / "tuned.yaml").write_text(text)

    return write


def test_tuned_parameters_are_those_of_the_tuned_file(declare, tuned):
    tuned(TUNED)
    assert sizes(of(declare, "tuned")) == {"plain": 32, "own": 8}


def test_what_a_model_declares_itself_goes_before_what_was_tuned(declare, tuned):
    tuned(TUNED)
    assert sizes(of(declare, "tuned", "{max_batch_size: 2}")) == {"plain": 32, "own": 2}


def test_one_tuned_model_does_not_change_the_server(declare, tuned):
    tuned(TUNED)
    assert sizes(of(declare, SERVER, "tuned")) == {"plain": 16, "own": 8}


def test_tuning_may_have_found_that_off_is_best(declare, tuned):
    tuned("batching: off\n")
    assert of(declare, "tuned").server is None


def test_tuned_without_the_tuned_file_is_refused_where_it_is_said(declare):
    with pytest.raises(DeclarationError) as raised:
        of(declare, "tuned")
    (problem,) = raised.value.problems
    assert problem.where == "pipeline.yaml:6"
    assert problem.what == "batching: tuned, but there is no serving/tuned.yaml"


@pytest.mark.parametrize("text", ["", "batching: [1\n", "- a\n", "batching: {max_batch_size: 0}\n", "models: {}\n"])
def test_a_tuned_file_that_is_none_is_refused_by_name(declare, tuned, text):
    tuned(text)
    with pytest.raises(DeclarationError) as raised:
        of(declare, "tuned")
    assert raised.value.problems[0].where.startswith("serving/tuned.yaml")
