"""The databases that a store can be in: an SQLite file, and a PostgreSQL server that the tests start."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from launchpad.declaration import Declaration
from tests.integration.conftest import free_ports

TEXT = "name: tiny\nmodels:\n  tiny: {{source: m.py:f}}\nstore: {url}\n"


def _program(name: str) -> str | None:
    """Return the path of one of PostgreSQL's programs; Debian keeps those of the server off the PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(debian[-1]) if debian else shutil.which(name)


class Postgres:
    """A PostgreSQL server of its own, in a temporary folder, run by a user who is not root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (self.port,) = free_ports(1)
        self.user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        if os.geteuid() == 0:
            shutil.chown(folder, self.user)
        self._run("initdb", "--pgdata", "data", "--auth=trust", "--username=tests", "--no-sync", "--encoding=UTF8")
        self.start()

    def start(self) -> None:
        settings = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -c fsync=off"
        self._run("pg_ctl", "--pgdata=data", "--log=log", "--wait", f"--options={settings}", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "--pgdata=data", "--wait", "--mode=immediate", "stop")

    def database(self, name: str) -> str:
        """Make an empty database; return its URL."""
        with psycopg.connect(f"host=127.0.0.1 port={self.port} user=tests dbname=postgres", autocommit=True) as opened:
            opened.execute(f'create database "{name}"')
        return f"postgresql+psycopg://tests@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *words: str) -> None:
        path = _program(program)
        assert path
        as_user = {"user": self.user, "group": self.user, "extra_groups": []} if os.geteuid() == 0 else {}
        log = self.folder / f"{program}.out"
        with log.open("w") as out:
            done = subprocess.run([path, *words], cwd=self.folder, stdout=out, stderr=out, check=False, **as_user)
        assert done.returncode == 0, log.read_text()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if _program("initdb") is None:
        message = "PostgreSQL is not installed: apt-get install postgresql"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        server = Postgres(Path(folder))
        yield server
        server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def declared(request: pytest.FixtureRequest, declare: Callable[..., Declaration]) -> Declaration:
    """A declaration whose store is an empty database of each kind."""
    if request.param == "sqlite":
        return declare(TEXT.format(url="sqlite:///store.db"))
    server: Postgres = request.getfixturevalue("postgres")
    return declare(TEXT.format(url=server.database(f"test_{os.urandom(4).hex()}")))
