"""Store: the fleet's database. SQLite with a write-ahead log, or any URL that SQLAlchemy takes.

The database is the truth: the broker can be wiped and is refilled from here. What is written in
one ``write()`` is there whole or not at all, and it is on disk when the block has been left.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from edgeml.errors import InputError
from edgeml.fleet import tables


class Store:
    """A connection pool, brought up to the newest version of the tables.

    Args:
        url: For example ``sqlite:////var/lib/edgeml/fleet.db``.

    Raises:
        InputError: The database cannot be opened, or was made by a newer release.
    """

    def __init__(self, url: str) -> None:
        """Connect, and migrate."""
        self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        try:
            self._migrate()
        except sa.exc.DatabaseError as error:
            self.close()
            raise InputError(
                f"cannot open the database {self._engine.url.database}: {error.orig}",
                "restore it from a backup, or choose another --data",
            ) from error

    @classmethod
    def at(cls, path: Path) -> Store:
        """Open an SQLite file, which is made when it is not there."""
        return cls(f"sqlite:///{path.resolve()}")

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Give a connection; what was written is kept when the block ends without an error."""
        with self._engine.connect() as connection:
            connection = connection.execution_options(edgeml_write=True)
            with connection.begin():
                yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Give a connection that sees one state of the database, and blocks no writer."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _migrate(self) -> None:
        with self.write() as db:
            tables.versions.create(db, checkfirst=True)
            have = db.scalar(sa.select(sa.func.max(tables.versions.c.version))) or 0
            newest = len(tables.MIGRATIONS)
            if have > newest:
                raise InputError(
                    f"the database has version {have}, expected at most {newest}",
                    "it belongs to a newer release of edgeml-kit: install that one",
                )
            for number in range(have, newest):
                tables.MIGRATIONS[number](db)
                row = {"version": number + 1, "at": time.time()}
                db.execute(tables.versions.insert(), row)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver shall not open transactions by its own rules: _begin_sqlite does.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock at once: a reader that turns into a writer could find its view stale.
    write = connection.get_execution_options().get("edgeml_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
