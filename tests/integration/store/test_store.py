"""The store behaves alike in an SQLite file and in a PostgreSQL server."""

from __future__ import annotations

import datetime
import multiprocessing
import tempfile
from multiprocessing.synchronize import Barrier
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from launchpad import declaration, files
from launchpad.errors import DeclarationError, EnvironmentFault
from launchpad.query.asking import ask
from launchpad.query.questions import QUESTIONS
from launchpad.store import Store, connection
from launchpad.store.schema import Base
from launchpad.store.views import VIEWS
from tests.integration.store.conftest import TEXT

MIDNIGHT = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def example() -> tuple[dict, Path]:
    """A real run: its summary and its folder."""
    folder = min((Path(__file__).parents[3] / "loadtests" / "results").glob("*/summary.json")).parent
    return files.read_json(folder / "summary.json"), folder


def sample(minute: int = 0, model: str = "m", **figures) -> dict:
    at = MIDNIGHT + datetime.timedelta(minutes=minute)
    return {"at": at, "instance": "one", "model": model, "seconds": 60.0, "trouble": ""} | figures


def changed(summary: dict, run: str, started: str, factor: float) -> dict:
    """Return a run like another, later and slower."""
    models = {
        name: {key: value * factor if key.endswith("_ms") else value for key, value in figures.items()}
        for name, figures in summary["models"].items()
    }
    return summary | {"run": run, "started": started, "models": models}


def test_a_run_is_kept_with_all_its_parts_and_read_back(declared, example):
    summary, folder = example
    with Store.open(declared) as store:
        store.add_run(summary, folder)
        assert store.counts()["seconds"] > 0 and store.counts()["histograms"] == len(summary["lines"])
    columns, rows = ask(declared, "latency-by-run", {})
    assert columns[:2] == ["started", "run"]
    assert {row[3]: row[-1] for row in rows} == {name: model["p99_ms"] for name, model in summary["models"].items()}
    assert ask(declared, "select sum(requests) from seconds", {})[1] == [(summary["totals"]["requests"],)]


def test_every_ready_made_question_and_view_has_an_answer(declared, example):
    summary, folder = example
    with Store.open(declared) as store:
        store.add_run(summary, folder)
        store.add_samples([sample(p99_ms=20.0, objective_p99_ms=10.0, refused=1)])
    for name, question in QUESTIONS.items():
        columns, rows = ask(declared, name, dict.fromkeys(question.needs, summary["run"]))
        assert columns and rows is not None
    for view in VIEWS:
        assert ask(declared, f"select * from {view}", {})[0]


def test_a_regression_shows_against_the_run_before_on_the_same_machine(declared, example):
    summary, _ = example
    with Store.open(declared) as store:
        store.add_run(summary)
        store.add_run(changed(summary, "later", "2099-01-01T00:00:00+00:00", 1.5))
        elsewhere = changed(summary, "elsewhere", "2099-01-02T00:00:00+00:00", 9.0)
        store.add_run(elsewhere | {"machine": {"processor": "another", "cores": 1}})
    columns, rows = ask(declared, "regressions", {})
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    assert {row["run"] for row in found} == {"later"} and {row["model"] for row in found} == set(summary["models"])
    assert {float(row["change_percent"]) for row in found} == {50.0}


def test_hours_over_the_objective_are_counted_by_model(declared):
    with Store.open(declared) as store:
        over = [sample(minute, p99_ms=30.0, objective_p99_ms=20.0) for minute in (1, 2)]
        under = [sample(minute, p99_ms=3.0, objective_p99_ms=20.0) for minute in (3, 61, 62)]
        store.add_samples([*over, *under, sample(5, model="other", p99_ms=1.0, objective_p99_ms=20.0), sample(6, "")])
    assert ask(declared, "hours-over-objective", {})[1] == [("2026-01-01 00", "m", 3, 2, 30.0, 20.0)]


def test_the_budget_that_a_runs_failures_spent_follows_from_its_objective(declared, example):
    summary, _ = example
    name, figures = next(iter(summary["models"].items()))
    models = {name: figures | {"requests": 10_000, "failures": 5}}
    with Store.open(declared) as store:
        store.add_run(summary | {"models": models})
    columns, rows = ask(declared, "error-budget", {})
    assert dict(zip(columns, rows[0], strict=True))["spent"] == pytest.approx(0.5)  # of 0.1 % of 10,000


WRITES = [
    "delete from gates",
    "insert into stages (stage) values ('x')",
    "update gates set unit = 'x'",
    "drop view run_latency",
    "create table more (x integer)",
    "select 1; delete from gates",
    "with gone as (delete from gates returning id) select * from gone",
]
ON_SQLITE = ["pragma query_only = off", "vacuum into '{folder}/copy.db'", "attach '{folder}/other.db' as other"]
ON_POSTGRESQL = [
    "set transaction read write; delete from gates",
    "commit; begin read write; delete from gates; commit",
    "select set_config('transaction_read_only', 'off', true), nextval('stages_id_seq')",
    "copy runs to '{temporary}' ; delete from gates",
    "copy runs to '{temporary}'",
    "copy (select 1) to program 'touch {temporary}'",
]


def test_sql_that_writes_is_refused_by_the_database_and_changes_nothing(declared, example, tmp_path):
    with Store.open(declared) as store:
        store.add_run(example[0])
        before = store.counts()
    own = ON_SQLITE if declared.pipeline.store.startswith("sqlite") else ON_POSTGRESQL
    temporary = Path(tempfile.mkdtemp()) / "written"
    temporary.parent.chmod(0o777)  # for the database's user
    for sql in [*WRITES, *(text.format(folder=tmp_path, temporary=temporary) for text in own)]:
        with pytest.raises(DeclarationError) as raised:
            ask(declared, sql, {})
        assert raised.value.exit_code == 2, sql
    with Store.open(declared) as store:
        assert store.counts() == before
    assert ask(declared, "select count(*) from run_latency", {})[1][0][0] > 0
    assert not temporary.exists() and not (tmp_path / "copy.db").exists() and not (tmp_path / "other.db").exists()


def test_a_mistake_in_sql_is_the_askers_whatever_words_it_has(declared):
    with pytest.raises(DeclarationError, match="connection"):
        ask(declared, "select connection from runs", {})


WRITERS = 2


def _write(root: Path, writer: int, many: int) -> None:
    declared = declaration.load(root)
    for number in range(many):
        with Store.open(declared) as store:
            store.add_samples([sample(number, model=f"writer {writer}", answered=number)] * 3)


def test_writers_at_once_lose_nothing(declared):
    spawned = multiprocessing.get_context("spawn")
    writers = [spawned.Process(target=_write, args=(declared.root, number, 25)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    sql = "select model, count(*), sum(answered) from samples group by model order by model"
    assert ask(declared, sql, {})[1] == [(f"writer {number}", 75, 900) for number in range(WRITERS)]


def _open_new_files(folder: Path, writer: int, together: Barrier) -> None:
    for number in range(100):
        engine = connection.writer(make_url(f"sqlite:///{folder / str(number)}.db"))
        together.wait()
        with engine.begin() as opened:
            opened.exec_driver_sql(f"create table of_{writer} (x integer)")


def test_a_new_file_that_several_open_at_once_is_opened_by_all(tmp_path):
    """SQLite does not wait where one asks for a write-ahead log while another one does."""
    spawned = multiprocessing.get_context("spawn")
    together = spawned.Barrier(3, timeout=60)
    writers = [spawned.Process(target=_open_new_files, args=(tmp_path, number, together)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 3


def test_the_migrations_make_what_the_code_writes_to(declared):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with Store.open(declared):
        pass
    with connection.writer(connection.locate(declared)).connect() as opened:
        assert compare_metadata(MigrationContext.configure(opened), Base.metadata) == []


def test_a_server_that_is_away_says_so_and_the_store_is_whole_when_it_is_back(postgres, declare, example):
    declared = declare(TEXT.format(url=postgres.database("away")))
    summary, _ = example
    with Store.open(declared) as store:
        store.add_run(summary)
        postgres.stop()
        try:
            with pytest.raises(EnvironmentFault, match="does not answer") as raised:
                store.add_run(summary | {"run": "lost"})
            assert "invoke store --fill" in raised.value.problems[0].fix
            with pytest.raises(EnvironmentFault, match="does not answer"):
                ask(declared, "select 1", {})
        finally:
            postgres.start()
        store.add_run(summary | {"run": "later"})
        assert store.runs() == {summary["run"], "later"}


def test_a_table_that_another_program_holds_is_said_to_be_locked(postgres, declare, example, monkeypatch):
    monkeypatch.setattr(connection, "LOCK_TIMEOUT_S", 0.2)
    declared = declare(TEXT.format(url=postgres.database("held")))
    with Store.open(declared) as store:
        address = declared.pipeline.store.replace("+psycopg", "")
        with psycopg.connect(address) as holder:
            holder.execute("lock table runs")
            with pytest.raises(EnvironmentFault, match="is locked by another program"):
                store.add_run(example[0])
        store.add_run(example[0])


def test_a_database_that_there_is_not_says_so(postgres, declare):
    declared = declare(TEXT.format(url=f"postgresql+psycopg://tests:secret@127.0.0.1:{postgres.port}/nosuch"))
    with pytest.raises(EnvironmentFault, match='database "nosuch" does not exist') as raised:
        Store.open(declared)
    assert "secret" not in str(raised.value)
