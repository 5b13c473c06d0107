"""The run store keeps a run with its figures, or nothing of it; older stores are brought up to date."""

from __future__ import annotations

import datetime
import shutil
import sqlite3
import threading

import pytest
from hdrh.histogram import HdrHistogram
from sqlalchemy import event

from launchpad import files, notes
from launchpad.errors import DeclarationError, EnvironmentFault
from launchpad.layout import Layout
from launchpad.loadtest import summary
from launchpad.runfolder import histogram
from launchpad.store import Store, attempt, connection, migrate, upkeep
from launchpad.store.schema import Base
from tests.conftest import MINIMAL

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


@pytest.mark.parametrize(
    "url",
    [
        *("nonsense", "nosuchdb://localhost/x", "postgresql+psycopg://h:abc/x", "sqlite+aiosqlite:///a.db"),
        "sqlite:///a.db?timeout=abc",
    ],
)
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


FIRST_SCHEMA = """
create table runs (id varchar(32) not null primary key, status varchar(16) not null, started datetime not null,
  profile varchar(64) not null, backend varchar(16) not null, configuration varchar(64) not null,
  summary json not null);
create index ix_runs_started on runs (started);
create table results (run varchar(32) not null references runs (id), scope varchar(8) not null,
  name varchar(128) not null, requests integer not null, failures integer not null, success_rate float,
  throughput_rps float not null, mean_ms float, p50_ms float, p95_ms float, p99_ms float, max_ms float,
  primary key (run, scope, name));
insert into runs values ('old', 'completed', '2025-12-31 00:00:00.000000', 'steady', 'embedded', 'c', '{}');
insert into results values ('old', 'all', '', 10, 0, 1.0, 5.0, 1.0, 1.0, 2.0, 3.0, 4.0);
"""


@pytest.fixture
def old_store(declared):
    (declared.root / "deep").mkdir()
    made = sqlite3.connect(declared.root / "deep" / "store.db")
    made.executescript(FIRST_SCHEMA)
    made.close()


def test_a_store_from_before_there_were_migrations_keeps_its_runs_and_takes_new_ones(declared, old_store):
    with Store.open(declared) as store:
        store.add_run(document())
    assert rows(declared, "select run, p99_ms from run_latency where scope = 'all' order by started") == [
        ("old", 3.0),
        ("20260101-000000-abcd", 3.001),
    ]
    assert rows(declared, "select version_num from alembic_version") == [(migrate.HEAD,)]


def test_those_that_find_an_old_store_at_once_migrate_it_once(declared, old_store, monkeypatch):
    version, looked = migrate.version, threading.local()

    def all_look_before_any_migrates(opened):
        first, looked.before = not hasattr(looked, "before"), True
        return migrate.FIRST if first else version(opened)

    monkeypatch.setattr(migrate, "version", all_look_before_any_migrates)
    raised = []

    def open_it() -> None:
        try:
            Store.open(declared)
        except Exception as error:
            raised.append(error)

    opening = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in opening:
        thread.start()
    for thread in opening:
        thread.join()
    assert not raised
    assert rows(declared, "select id from runs") == [("old",)]


def test_a_store_of_a_newer_version_is_left_as_it_is(declared):
    Store.open(declared)
    made = sqlite3.connect(declared.root / "deep" / "store.db")
    made.execute("update alembic_version set version_num = '9999'")
    made.commit()
    made.close()
    with pytest.raises(EnvironmentFault, match="newer version of this project: its schema is 9999") as raised:
        Store.open(declared)
    assert "update this checkout" in raised.value.problems[0].fix


def test_a_locked_store_is_said_to_be_locked_and_what_was_measured_is_not_lost(declared, monkeypatch, capsys):
    Store.open(declared)
    monkeypatch.setattr(connection, "LOCK_TIMEOUT_S", 0.1)
    holder = sqlite3.connect(declared.root / "deep" / "store.db", isolation_level=None)
    holder.execute("begin immediate")
    try:
        assert not attempt(declared, lambda store: store.add_run(document()))
    finally:
        holder.close()
    said = " ".join(capsys.readouterr().out.split())
    assert "locked by another program" in said and "invoke store --fill" in said
    assert attempt(declared, lambda store: store.add_run(document()))


def test_a_full_store_is_said_to_be_full_and_keeps_nothing_in_part(declared):
    with Store.open(declared) as store:
        limit = "pragma max_page_count = 1"  # no more pages than there are
        event.listen(store._engine, "connect", lambda connection, _: connection.execute(limit))
        with pytest.raises(EnvironmentFault, match="has no room left") as raised:
            store.add_run(document(why="x" * 100_000))
    assert "make room" in raised.value.problems[0].fix
    assert rows(declared, "select count(*) from runs") == [(0,)]


def test_a_run_comes_with_its_seconds_histograms_and_gates(declared, repository):
    folder = min((repository / "loadtests" / "results").glob("*/summary.json")).parent
    summary = files.read_json(folder / "summary.json")
    with Store.open(declared) as store:
        store.add_run(summary, folder)
    requests = summary["totals"]["requests"]
    assert rows(declared, "select sum(requests) from seconds") == [(requests,)]
    assert rows(declared, "select sum(count) from histograms where kind = 'response'") == [(requests,)]
    assert rows(declared, "select count(*) from gates where passed") == [(len(summary["objectives"]),)]
    ((payload,),) = rows(declared, "select payload from histograms where kind = 'response' limit 1")
    assert HdrHistogram.decode(payload).get_total_count() > 0


@pytest.fixture
def add(declared, tmp_path):
    """Add a run with a history of these rows."""

    def with_history(*rows: str) -> None:
        head = "second,line,requests,failures,p50_ms,p95_ms,p99_ms,max_ms"
        (tmp_path / "history.csv").write_text("\n".join([head, *rows, ""]))
        with Store.open(declared) as store:
            store.add_run(document(), tmp_path)

    return with_history


def test_a_run_folder_without_its_histograms_gives_what_it_has(declared, add):
    add("0,tiny one,2,1,1.0,2.0,3.0,3.0", "1,tiny one,1,1,,,,")
    assert rows(declared, "select second, failures, p99_ms from seconds") == [(0, 1, 3.0), (1, 1, None)]
    assert rows(declared, "select count(*) from histograms") == [(0,)]


def test_a_second_that_a_process_handed_over_late_is_one_all_the_same(declared, add):
    first, late = ("0,tiny one,2,1,1.0,2.0,3.0,3.0", "1,tiny one,1,1,,,,"), "0,tiny one,5,0,1.5,1.6,1.7,1.8"
    add(*first, late, "1,tiny one,0,0,,,,")
    assert rows(declared, "select second, requests, failures, p50_ms, p99_ms from seconds order by second") == [
        (0, 7, 1, 1.5, 3.0),
        (1, 1, 1, None, None),
    ]


def test_a_folder_that_cannot_be_made_is_a_fault_of_the_environment(declare):
    declared = declare(MINIMAL + "store: sqlite:////dev/null/store.db\n")
    with pytest.raises(EnvironmentFault, match="the store's folder cannot be made"), Store.open(declared):
        pass


def test_what_is_older_than_it_is_kept_goes_and_the_rest_stays(declared):
    now = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
    with Store.open(declared) as store:
        store.add_run(document("old", started="2026-01-01T00:00:00+00:00"))
        store.add_run(document("new", started="2026-02-28T00:00:00+00:00"))
        store.add_samples(
            [{"at": now - datetime.timedelta(days=age), "instance": "i", "model": "", "trouble": ""} for age in (40, 5)]
        )
        month = now - datetime.timedelta(days=30)
        assert store.prune(month)["samples"] == 1
        assert store.runs() == {"old", "new"}
        assert store.prune(month, month) | {} == {
            "samples": 0,
            "stages": 0,
            "decisions": 0,
            "results": 4,
            "seconds": 0,
            "histograms": 0,
            "gates": 0,
            "runs": 1,
        }
        assert store.runs() == {"new"} and store.counts()["samples"] == 1


def test_the_migrations_make_the_tables_that_the_code_writes_to(declared):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    Store.open(declared)
    with connection.writer(connection.locate(declared)).connect() as opened:
        assert compare_metadata(MigrationContext.configure(opened), Base.metadata) == []


def test_a_moment_is_kept_in_utc_whatever_zone_it_was_given_in(declared):
    zone = datetime.timezone(datetime.timedelta(hours=2))
    with Store.open(declared) as store:
        store.add_stages(
            [
                {
                    "at": datetime.datetime(2026, 1, 1, 1, 0, tzinfo=zone),
                    "stage": "export",
                    "status": "done",
                    "seconds": 1.0,
                    "detail": "",
                    "run": None,
                }
            ]
        )
    assert rows(declared, "select at from stages") == [("2025-12-31 23:00:00.000000",)]


def test_a_store_that_was_lost_is_filled_again_from_the_runs_and_the_notes(declared, repository, capsys):
    layout = Layout(declared.root)
    example = min((repository / "loadtests" / "results").glob("*/summary.json")).parent
    shutil.copytree(example, layout.results(example.name))
    files.write_json(layout.results("incomplete") / "summary.json", {"run": "incomplete", "started": "2026-01-01"})
    (layout.results("empty")).mkdir()
    files.write_json(layout.results("search") / "capacity.json", {})
    released = next((repository / "reports" / "releases").glob("*/evidence.json"))
    version = released.parent.name
    shutil.copytree(released.parent, layout.reports / "releases" / version)
    notes.record(declared, "tune", {"a.b": (1, 2)}, "why", run_before=example.name)
    for path in (declared.root / "deep").glob("store.db*"):
        path.unlink()

    upkeep.fill(declared.root)

    said = " ".join(capsys.readouterr().out.split())
    assert "added 1 run; it has 1 note and the gates of 1 release" in said and "search" not in said
    assert "loadtests/results/empty: not added: there is no whole summary.json" in said
    assert "loadtests/results/incomplete: not added: summary.json lacks 'status'" in said
    assert rows(declared, "select id from runs") == [(example.name,)]
    assert rows(declared, "select count(*) > 0 from seconds") == [(1,)]
    assert rows(declared, "select source, why, run_before from changes") == [("tune", "why", example.name)]
    gates = "select count(*) > 10, max(at) from gates where release = "
    made = datetime.datetime.fromisoformat(files.read_json(released)["made"])
    assert rows(declared, f"{gates}'{version}'") == [(1, f"{made:%Y-%m-%d %H:%M:%S}.000000")]
    upkeep.fill(declared.root)
    assert "added 0 runs; it has 1 note" in capsys.readouterr().out


def test_what_the_store_holds_and_what_is_old_in_it_is_shown(declared, capsys):
    with Store.open(declared) as store:
        at = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        store.add_samples([{"at": at, "instance": "i", "model": "", "trouble": ""}])
    upkeep.prune(declared.root)
    upkeep.show(declared.root)
    said = capsys.readouterr().out
    assert "deleted 1 samples" in said and "store.db, schema" in said and "│ samples    │    0 │" in said
