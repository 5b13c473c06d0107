"""`invoke query`: a SELECT on a connection that can only read, its rows as a table, CSV or JSON."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
import math
import re
import sqlite3
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from launchpad import console, declaration
from launchpad.declaration import Declaration
from launchpad.errors import DeclarationError
from launchpad.query.questions import QUESTIONS
from launchpad.store import connection, make_current, views

Rows = list[tuple[Any, ...]]

REFUSALS = ("not authorized", "authorization denied", "prohibited", "read-only", "readonly")
"""What databases say to a statement that a reading connection may not run."""

NOTHING = "–"
SHORTEST_TEXT = 16
"""Width at which a column of words can still be read."""
MOMENT = re.compile(r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(\+00:00)?$")
"""A moment in UTC, as either database gives it; a table shows it to the second."""


def show(root: Path, sql: str, given: Sequence[str], as_csv: bool, as_json: bool) -> None:
    """Print what the store answers to SQL, or to a ready-made question with parameters given as `name=value`."""
    if as_csv and as_json:
        raise DeclarationError("--csv and --json are both given", fix="give one of them")
    declared = declaration.load(root)
    columns, rows = ask(declared, sql, _parameters(sql, given))
    if as_csv:
        with console.printing():
            writer = csv.writer(sys.stdout)
            writer.writerow(columns)
            writer.writerows([[_plain(value) for value in row] for row in rows])
    elif as_json:
        answer = [dict(zip(columns, map(_finite, row), strict=True)) for row in rows]
        with console.printing():
            print(json.dumps(answer, indent=1, ensure_ascii=False))
    else:
        _print(columns, rows)
        console.say(f"{len(rows)} row{'s' if len(rows) != 1 else ''}", "dim")


def _print(columns: Sequence[str], rows: Rows) -> None:
    """Print a table; rows one below the other where it would have to break numbers or moments to fit."""
    cells = [[_shown(value) for value in row] for row in rows]
    numbers = [_is_number(row[index] for row in rows) for index in range(len(columns))]
    heads, right, whole, least = [], [], [], 1
    for name, is_number, column in zip(
        columns, numbers, zip(*cells, strict=True) if cells else [()] * len(columns), strict=True
    ):
        longest = max(map(len, column), default=0)
        if is_number or all(cell == NOTHING or MOMENT.match(cell) for cell in column):
            head = _folded(name, longest)
            whole.append(head)
            least += 3 + max(longest, *map(len, head.split("\n")))
        else:
            head = name
            least += 3 + min(longest, SHORTEST_TEXT)
        heads.append(head)
        right += [head] if is_number else []
    if least <= console.out.width:
        console.table("", heads, cells, right, whole)
        return
    for number, row in enumerate(cells, 1):
        console.say(f"row {number}", "bold")
        for name, cell in zip(columns, row, strict=True):
            console.say(f"  {name:{max(map(len, columns))}}  {cell}")


def _folded(name: str, width: int) -> str:
    """Return a column's name in lines that end with an underscore, where it is wider than its cells."""
    lines = [""]
    for part in re.findall("[^_]+_*|_+", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def show_questions() -> None:
    """Print the ready-made questions."""
    rows = [
        (name, question.title, " ".join(f"--given {need}=…" for need in question.needs))
        for name, question in QUESTIONS.items()
    ]
    console.table("Ready-made questions: invoke query NAME", ("name", "what it answers", "needs"), rows)
    console.say(f"views: {', '.join(views.VIEWS)}")


def ask(declared: Declaration, sql: str, parameters: Mapping[str, str]) -> tuple[list[str], Rows]:
    """Return (columns, rows) of a statement, or of the ready-made question of that name.

    Raises DeclarationError for what is no SQL, or writes: the database itself refuses that; for the id of a run that is
    not there; EnvironmentFault for a store that is away.
    """
    make_current(declared)
    url, where = connection.locate(declared), declared.where("store")
    engine = connection.reader(url)
    try:
        with engine.connect() as opened:
            if sql in QUESTIONS:
                _check_runs(opened, parameters)
                result = opened.execute(text(QUESTIONS[sql].sql), parameters)
            else:
                result = opened.exec_driver_sql(sql, execution_options={"no_parameters": True})
            if not result.returns_rows:
                raise DeclarationError("the statement gives no rows", fix="ask with SELECT")
            return list(result.keys()), [tuple(row) for row in result]
    except (SQLAlchemyError, sqlite3.Error) as error:
        if connection.interrupted(error):
            raise KeyboardInterrupt from None
        if connection.unreachable(error, url):
            with connection.told("asking it", url, where):
                raise
        raise _refused(error) from None
    finally:
        engine.dispose()


def _check_runs(opened: Connection, parameters: Mapping[str, str]) -> None:
    for name, run in parameters.items():
        if not opened.execute(text("select 1 from runs where id = :run"), {"run": run}).first():
            raise DeclarationError(
                f"{name}={run}: the store has no run of that id", fix="`invoke query latency-by-run` shows those it has"
            )


def _refused(error: Exception) -> DeclarationError:
    original = getattr(error, "orig", None) or error
    said = " ".join(str(original).split())
    if any(word in said for word in REFUSALS):
        return DeclarationError(f"the database refused what is not reading: {said}", fix="ask with SELECT")
    fix = "ask with SELECT; `invoke query --list` shows ready-made questions and the views"
    return DeclarationError(f"SQL: {said}", fix=fix if isinstance(error, DBAPIError) else "")


def _parameters(sql: str, given: Sequence[str]) -> dict[str, str]:
    """Return the parameters of a ready-made question. Raises DeclarationError for missing or unknown ones."""
    pairs = dict(item.partition("=")[::2] for item in given)
    needs = QUESTIONS[sql].needs if sql in QUESTIONS else {}
    missing = [f"--given {name}=… ({what})" for name, what in needs.items() if not pairs.get(name)]
    unknown = pairs.keys() - needs.keys()
    if missing:
        raise DeclarationError(f"{sql} needs {' and '.join(missing)}")
    if unknown:
        raise DeclarationError(
            f"there is no parameter {', '.join(sorted(unknown))} in it", fix="write values into the SQL"
        )
    return pairs


def _plain(value: Any) -> Any:
    """Return a value as CSV and JSON have it."""
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    return value.hex() if isinstance(value, bytes) else value


def _finite(value: Any) -> Any:
    """Return a value as JSON has it, which knows no infinity: null."""
    value = _plain(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    value = _plain(value)
    if value is None:
        return NOTHING
    if isinstance(value, str) and MOMENT.match(value):
        return value[:19].replace("T", " ")
    if isinstance(value, float):
        return f"{round(value, 3) if abs(value) > 1 else value:.6g}"
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def _is_number(values: Iterable[Any]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, (int, float, decimal.Decimal)) for value in known)
