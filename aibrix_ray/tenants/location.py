"""Where the store is: the configured URL, the environment, or a file in the user's state folder."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from aibrix_ray.errors import ConfigError

#: Names the store; stronger than the file, weaker than a flag.
ENVIRONMENT = "AIBRIX_RAY_STORE"
_POSTGRES = "postgresql+psycopg"


def store_url(
    configured: str | None = None,
    *,
    flag: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> sa.URL:
    """Return the store's URL: flag > $AIBRIX_RAY_STORE > `auth.store` of the file > SQLite.

    Gateways and the command line both ask here, so that keys are made where they are looked up.

    Raises:
        ConfigError: it is no URL of SQLite or PostgreSQL, or PostgreSQL's driver is missing.
    """
    for path, text in (
        ("--store", flag),
        (ENVIRONMENT, environ.get(ENVIRONMENT)),
        ("auth.store", configured),
    ):
        if text:
            return _checked(text, path)
    return sa.URL.create("sqlite", database=str(_default_file(environ)))


def prepare_file(url: sa.URL) -> None:
    """Make SQLite's file and its folder, closed to other users; an existing one stays as it is.

    Raises:
        ConfigError: the file cannot be made.
    """
    if url.get_backend_name() != "sqlite":
        return
    assert url.database, "_checked() lets no other through"
    path = Path(url.database)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its side files the mode of this one.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ConfigError(
            path="auth.store",
            value=str(path),
            expected="a file that this user can read and write",
            hint=str(error),
        ) from error


def shown(url: sa.URL) -> str:
    """Return the URL as people may see it, without its password."""
    return url.render_as_string(hide_password=True)


def _checked(text: str, path: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError):
        # The text is not shown: it may hold a password.
        raise _no_store("a text that is no URL", path) from None
    if url.drivername in ("postgres", "postgresql", _POSTGRES):
        _need_psycopg(path)
        return url.set(drivername=_POSTGRES)
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise _no_store(shown(url), path)
    name = url.database
    if not name or name == ":memory:" or name.startswith("file:"):
        raise ConfigError(
            path=path,
            value=shown(url),
            expected="a file, because each process would have a memory of its own",
            hint="write sqlite:////absolute/path.db",
        )
    return url


def _no_store(value: str, path: str) -> ConfigError:
    return ConfigError(
        path=path,
        value=value,
        expected="an SQLAlchemy URL such as postgresql://user:password@host/name or "
        "sqlite:////absolute/path.db",
    )


def _need_psycopg(path: str) -> None:
    if importlib.util.find_spec("psycopg") is None:
        raise ConfigError(
            path=path,
            value="a PostgreSQL URL",
            expected="the driver psycopg beside it",
            hint="run: pip install 'aibrix-ray[postgres]'",
        )


def _default_file(environ: Mapping[str, str]) -> Path:
    chosen = environ.get("XDG_STATE_HOME", "")
    # The specification of XDG_STATE_HOME has relative paths ignored.
    base = Path(chosen) if chosen.startswith("/") else Path.home() / ".local" / "state"
    return base / "aibrix_ray" / "tenants.db"
