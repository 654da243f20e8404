"""A PostgreSQL server of a test run's own: in a temporary folder, on a Unix socket, no port."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from itertools import count
from pathlib import Path

import sqlalchemy as sa


def binaries() -> Path | None:
    """Return the folder of PostgreSQL's programs; Debian has them outside of PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class Postgres:
    """One server. `stop` and `start` again as often as a test wants."""

    def __init__(self, folder: Path) -> None:
        self._binaries = folder
        # Short: the path of a Unix socket has at most 107 bytes.
        self.root = Path(tempfile.mkdtemp(prefix="pg-"))
        self._numbers = count(1)
        if os.getuid() == 0:  # initdb refuses to run as root
            shutil.chown(self.root, "postgres")
        self._run("initdb", "-D", self._data, "-A", "trust", "-U", "tester", "-E", "UTF8", "-N")
        self.start()

    def start(self) -> None:
        # Everything in it dies with the test, so nothing need reach the disk.
        options = f"-k {self.root} -c listen_addresses='' -c fsync=off -c max_connections=60"
        self._run(
            "pg_ctl", "-D", self._data, "-o", options, "-l", f"{self.root}/log", "-w", "start"
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-m", "fast", "-w", "stop")

    def close(self) -> None:
        """Stop the server and remove its folder."""
        if (Path(self._data) / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.root)

    def url(self, database: str) -> str:
        return f"postgresql://tester@/{database}?host={self.root}"

    def make_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"test_{next(self._numbers)}"
        url = sa.make_url(self.url("postgres")).set(drivername="postgresql+psycopg")
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.url(name)

    @property
    def _data(self) -> str:
        return f"{self.root}/data"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        if os.getuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        # Not captured by a pipe: the server inherits it and would hold it open.
        with (self.root / "commands").open("ab") as log:
            subprocess.run(command, check=True, cwd=self.root, stdout=log, stderr=log, timeout=60)
