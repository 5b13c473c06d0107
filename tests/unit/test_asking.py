"""The table of an answer: numbers and moments are never broken, whatever its width."""

from __future__ import annotations

import datetime
import json
import signal
import threading

import pytest

from launchpad.errors import DeclarationError, EnvironmentFault
from launchpad.query import asking
from launchpad.store import Store
from launchpad.store.views import VIEWS

MANY = ", ".join(f"{number}.123456 as measured_{number:02}_ms" for number in range(10, 36))


@pytest.fixture
def asked(declare, capsys):
    """What a question prints; the store is empty."""
    declared = declare()
    with Store.open(declared):
        pass

    def ask(sql, *options):
        asking.show(declared.root, sql, [], "csv" in options, "json" in options)
        return capsys.readouterr().out

    return ask


def test_a_moment_and_a_number_stand_in_a_line_and_a_long_name_above_them_is_folded(asked):
    said = asked("select '2026-01-02 03:04:05.678901' as at, 12.3456 as throughput_rps_before, 'word ' || 'x' as why")
    head = ["                     ", " throughput_ ", "        "]
    assert f"┃{'┃'.join(head)}┃\n" in said
    assert "│ 2026-01-02 03:04:05 │      12.346 │ word x │" in said


def test_rows_that_do_not_fit_stand_one_below_the_other(asked):
    said = asked(f"select {MANY}")
    assert "row 1" in said and "  measured_10_ms  10.123\n  measured_11_ms  11.123\n" in said and "1 row\n" in said


def test_an_answer_of_no_rows_keeps_its_columns(asked):
    said = asked("select run, p99_ms from run_latency")
    assert "run" in said and "0 rows" in said


def test_what_programs_read_is_not_rounded(asked):
    assert asked("select 12.3456789 as a, null as b", "csv").splitlines() == ["a,b", "12.3456789,"]
    assert json.loads(asked("select 12.3456789 as a", "json")) == [{"a": 12.3456789}]


def test_a_question_about_a_run_that_is_not_there_is_refused(declare):
    declared = declare()
    with Store.open(declared):
        pass
    with pytest.raises(DeclarationError, match="before=nowhere: the store has no run of that id"):
        asking.ask(declared, "what-changed", {"before": "nowhere", "after": "nowhere"})


def test_a_number_without_end_is_null_in_json(asked):
    assert json.loads(asked("select 1e999 as a, -1e999 as b", "json")) == [{"a": None, "b": None}]


def test_the_views_that_there_are_are_named(capsys):
    asking.show_questions()
    said = capsys.readouterr().out
    assert all(name in said for name in VIEWS)


def test_ctrl_c_ends_a_question_that_takes_long(declare):
    declared = declare()
    with Store.open(declared):
        pass
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
    threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        asking.ask(declared, endless, {})


def test_a_store_that_is_broken_in_part_is_to_be_moved_away(declare):
    declared = declare()
    with Store.open(declared) as store:
        store.add_gates("1.0.0", [], datetime.datetime.now(datetime.UTC))
    path = declared.root / ".launchpad/store.db"
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(EnvironmentFault, match="malformed") as raised:
        asking.ask(declared, "select * from runs", {})
    assert "move" in raised.value.problems[0].fix and "invoke store --fill" in raised.value.problems[0].fix
