"""`invoke explore`: the store in the browser, with an SQL editor, the ready-made questions and their charts.

Datasette serves an SQLite file on 127.0.0.1 and opens it for reading only. A store in PostgreSQL is copied into a file
first.
"""

from __future__ import annotations

import contextlib
import html
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import URL, insert, make_url, select

from launchpad import console, declaration
from launchpad.declaration import Declaration
from launchpad.errors import EnvironmentFault
from launchpad.layout import Layout
from launchpad.query.questions import QUESTIONS, Question
from launchpad.store import connection, make_current, migrate
from launchpad.store.schema import Base
from launchpad.store.views import VIEWS

HOST = "127.0.0.1"
NAME = "store"
"""What the page calls the database."""
COPIED_AT_ONCE = 10_000
CLAUSES = re.compile(" (from|where|group by|order by|limit) ")
"""What begins a new line in the SQL editor."""


def show(root: Path, port: int) -> None:
    """Serve the store in the browser until Ctrl-C. Raises EnvironmentFault if the port is taken."""
    import uvicorn

    declared = declaration.load(root)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen()  # who comes from now on waits for the first answer
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else "there is no such port"
            raise EnvironmentFault(f"port {port}: {why}", fix="give another with --port") from None
        application = datasette(file_of(declared)).app()
        console.say(f"the store at http://{HOST}:{listener.getsockname()[1]}/, for reading only; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(application, log_level="warning")).run(sockets=[listener])


def datasette(file: Path) -> Any:
    """Return a Datasette on an SQLite file, with the ready-made questions."""
    from datasette.app import Datasette
    from datasette.database import Database
    from datasette.plugins import pm

    # With it every refused statement prints a traceback; faults of its own print one without it.
    pm.get_plugin("datasette.handle_exception").rich = None
    settings = {"allow_download": False, "default_page_size": 50, "sql_time_limit_ms": 10_000}
    served = Datasette([], metadata=metadata(), settings=settings)
    served.remove_database("_memory")
    served.add_database(Database(served, path=str(file), is_mutable=True), name=NAME)
    return served


def metadata() -> dict[str, Any]:
    """Return what Datasette is told: titles, and a query and if it is drawn a link to its chart for each question."""
    queries = {
        name: {"sql": CLAUSES.sub(r"\n\1 ", question.sql), "title": question.title}
        for name, question in QUESTIONS.items()
    }
    asked = "".join(_item(name, question) for name, question in QUESTIONS.items())
    views = "".join(f'<li><a href="/{NAME}/{view}">{view}</a></li>' for view in VIEWS)
    own = f'<p>Or <a href="/{NAME}">write SQL of your own</a>; nothing here can be changed.</p>'
    return {
        "title": "The run store",
        "description_html": f"<h2>Questions</h2><ul>{asked}</ul><h2>Views</h2><ul>{views}</ul>{own}",
        "databases": {NAME: {"queries": queries, "title": "The run store"}},
    }


def _item(name: str, question: Question) -> str:
    link = f'<a href="/{NAME}/{name}">{html.escape(question.title)}</a>'
    return f"<li>{link}{f' – <a href={chr(34)}{chart_path(name)}{chr(34)}>chart</a>' if question.chart else ''}</li>"


def chart_path(name: str) -> str:
    """Return the path of a question with its chart drawn, as datasette-vega reads it."""
    chart = QUESTIONS[name].chart
    assert chart
    drawn = {"mark": chart.mark, "x_column": chart.x, "x_type": chart.x_type, "y_column": chart.y}
    drawn |= {"y_type": "quantitative", "color_column": chart.color}
    return f"/{NAME}/{name}#{urlencode({f'g.{key}': value for key, value in drawn.items()})}"


def file_of(declared: Declaration) -> Path:
    """Return an SQLite file with what is in the store: the store itself, or a copy of one in PostgreSQL."""
    make_current(declared)
    url = connection.locate(declared)
    if url.get_backend_name() == "sqlite":
        return Path(str(url.database))
    copy = Layout(declared.root).private / "explore.db"
    for part in copy.parent.glob(f"{copy.name}*"):
        part.unlink()
    with connection.told("copying it", url, declared.where("store")):
        _copy(url, make_url(f"sqlite:///{copy}"), declared.where("store"))
    console.say(f"copied the store from {url.render_as_string()} as it is now")
    return copy


def _copy(source: URL, target: URL, where: str) -> None:
    reading, writing = connection.reader(source), connection.writer(target)
    migrate.bring_up_to_date(writing, where)
    with reading.connect() as there, writing.begin() as here:
        for table in Base.metadata.sorted_tables:
            rows = there.execution_options(yield_per=COPIED_AT_ONCE).execute(select(table)).mappings()
            for part in rows.partitions():
                here.execute(insert(table), [dict(row) for row in part])
