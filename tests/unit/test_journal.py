"""The journal of a chain: its stages are in the store, however it ended."""

from __future__ import annotations

import sqlite3

import pytest

from launchpad import journal
from launchpad.errors import EnvironmentFault
from launchpad.stage import Context, Outcome

TEXT = "name: tiny\nmodels:\n  tiny: {source: m.py:f}\nstore: sqlite:///store.db\n"


@pytest.fixture
def given(declare) -> Context:
    return Context(declare(TEXT))


def stages(given: Context) -> list[tuple]:
    with sqlite3.connect(given.layout.root / "store.db") as store:
        return store.execute("select stage, status, detail, run from stages order by id").fetchall()


def test_stages_are_kept_with_their_outcome_and_the_run_of_their_chain(given):
    with journal.kept(given) as kept:
        with kept.stage("export") as done:
            done(Outcome("up to date", "nothing has changed"))
        with kept.stage("loadtest") as done:
            done(Outcome("failed", "p99 too high", (given.layout.results("run-1"),)))
    assert stages(given) == [
        ("export", "up to date", "nothing has changed", "run-1"),
        ("loadtest", "failed", "p99 too high", "run-1"),
    ]


def test_a_stage_that_raises_is_kept_as_failed_and_the_error_goes_on(given):
    with pytest.raises(EnvironmentFault), journal.kept(given) as kept, kept.stage("launch"):
        raise EnvironmentFault("port 8501 is taken")
    assert stages(given) == [("launch", "failed", "port 8501 is taken", None)]


def test_a_chain_ends_as_it_would_where_the_store_is_away(declare, capsys):
    away = Context(declare(TEXT.replace("sqlite:///store.db", "postgresql+psycopg://u@127.0.0.1:1/x")))
    with journal.kept(away) as kept, kept.stage("export") as done:
        done(Outcome("done", "x"))
    assert "not in the store" in capsys.readouterr().out
