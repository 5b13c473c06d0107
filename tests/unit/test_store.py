"""The run store keeps a run with its figures, or nothing of it."""

from __future__ import annotations

import sqlite3

import pytest

from launchpad.errors import DeclarationError, EnvironmentFault
from launchpad.loadtest import summary
from launchpad.runfolder import histogram
from launchpad.store import Store

TEXT = "name: tiny\nmodels:\n  tiny: {{source: m.py:f}}\nstore: {url}\n"


def figures(*latencies_us: int) -> dict:
    recorded = histogram()
    for latency_us in latencies_us:
        recorded.record_value(latency_us)
    return summary.figures(recorded, len(latencies_us), 0, 1.0)


def document(run: str = "20260101-000000-abcd", **changes) -> dict:
    return {
        "run": run,
        "status": "completed",
        "started": "2026-01-01T00:00:00+00:00",
        "profile": {"name": "steady"},
        "server": {"backend": "embedded"},
        "configuration": "c" * 64,
        "totals": figures(1000, 3000),
        "models": {"tiny": figures(1000, 3000)},
        "lines": {"tiny one": figures(1000), "tiny two": figures(3000)},
    } | changes


@pytest.fixture
def declared(declare):
    return declare(TEXT.format(url="sqlite:///deep/store.db"))


def rows(declared, query: str) -> list[tuple]:
    connection = sqlite3.connect(declared.root / "deep" / "store.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_a_run_is_kept_with_its_figures_by_scope(declared):
    with Store.open(declared) as store:
        store.add_run(document())
    assert rows(declared, "select id, status, profile, backend from runs") == [
        ("20260101-000000-abcd", "completed", "steady", "embedded")
    ]
    assert rows(declared, "select scope, name, requests, max_ms from results order by scope, name") == [
        ("all", "", 2, 3.001),
        ("line", "tiny one", 1, 1.0),
        ("line", "tiny two", 1, 3.001),
        ("model", "tiny", 2, 3.001),
    ]
    assert rows(declared, "select json_extract(summary, '$.configuration') from runs") == [("c" * 64,)]


def test_runs_add_up_over_openings(declared):
    for run in ("first", "second"):
        with Store.open(declared) as store:
            store.add_run(document(run))
    assert rows(declared, "select id from runs order by id") == [("first",), ("second",)]


def test_a_run_that_measured_nothing_is_kept_as_failed(declared):
    with Store.open(declared) as store:
        store.add_run(document(status="failed", totals=None, models={}, lines={}))
    assert rows(declared, "select status from runs") == [("failed",)]
    assert rows(declared, "select * from results") == []


def test_a_run_whose_figures_do_not_fit_leaves_nothing_behind(declared):
    broken = document(lines={"tiny one": figures(1000) | {"requests": None}})
    with Store.open(declared) as store, pytest.raises(EnvironmentFault, match="NOT NULL") as raised:
        store.add_run(broken)
    assert raised.value.problems[0].where == "pipeline.yaml:4"
    assert rows(declared, "select count(*) from runs") == [(0,)]
    assert rows(declared, "select count(*) from results") == [(0,)]


def test_a_run_is_recorded_once(declared):
    with Store.open(declared) as store:
        store.add_run(document())
        with pytest.raises(EnvironmentFault, match="UNIQUE"):
            store.add_run(document(totals=figures(9)))
    assert rows(declared, "select requests from results where scope = 'all'") == [(2,)]


@pytest.mark.parametrize("url", ["nonsense", "nosuchdb://localhost/x"])
def test_a_url_that_is_none_is_the_declarations_fault(declare, url):
    with pytest.raises(DeclarationError) as raised:
        Store.open(declare(TEXT.format(url=url)))
    assert raised.value.problems[0].where == "pipeline.yaml:4"


def test_a_file_that_is_no_database_is_an_environment_fault(declared):
    (declared.root / "deep").mkdir()
    (declared.root / "deep" / "store.db").write_text("not a database, but long enough to be read as its header" * 20)
    with pytest.raises(EnvironmentFault, match="the store does not answer"):
        Store.open(declared)


def test_a_store_that_loses_a_table_takes_nothing_in_part(declared):
    with Store.open(declared) as store:
        store.add_run(document("first"))
        rows(declared, "drop table results")
        with pytest.raises(EnvironmentFault, match="no such table"):
            store.add_run(document("second"))
    assert rows(declared, "select id from runs") == [("first",)]
