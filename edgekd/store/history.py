"""Trials in SQLite: the log that a search is a pure function of."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from edgekd.errors import ConfigError, EdgekdError, IntegrityError, UsageError
from edgekd.store.files import disk_full, disk_full_is_an_error
from edgekd.values.codec import decode, encode
from edgekd.values.trial import History, Trial

SCHEMA_VERSION = 1


class TrialLog:
    """The trials of every job that used this file, in the order they ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_full_is_an_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._connection() as connection:
            self._migrate(connection)

    def history(self, job: str) -> History:
        """Return the trials of the job with this fingerprint."""
        with self._connection() as connection:
            rows = connection.execute("SELECT trial FROM trials WHERE job = ? ORDER BY id", (job,)).fetchall()
        try:
            return History(trials=tuple(decode(Trial, json.loads(text), "trial") for (text,) in rows))
        except (ConfigError, ValueError, TypeError) as error:
            raise self._unusable(str(error)) from error

    def record(self, job: str, *trials: Trial) -> None:
        """Append trials that belong together, all or none; they are on disk when this returns."""
        rows = [(job, encode(trial)) for trial in trials]
        with self._connection() as connection:
            connection.executemany("INSERT INTO trials (job, trial) VALUES (?, ?)", rows)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=30.0)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                with connection:
                    yield connection
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found > SCHEMA_VERSION:
            raise IntegrityError(
                f"{self.path} was written by a newer edgekd",
                cause=f"its schema is {found}, this one knows {SCHEMA_VERSION}",
                mend="update edgekd, or give another --out",
            )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS trials (id INTEGER PRIMARY KEY, job TEXT NOT NULL, trial TEXT NOT NULL)"
        )
        connection.execute("CREATE INDEX IF NOT EXISTS trials_of_job ON trials (job)")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _explained(self, error: sqlite3.DatabaseError) -> EdgekdError:
        if "full" in str(error):
            return disk_full(self.path, str(error))
        if "locked" in str(error):
            mend = "wait for it to end, or give another --out"
            return UsageError(f"another edgekd writes to {self.path}", cause=str(error), mend=mend)
        return self._unusable(str(error))

    def _unusable(self, cause: str) -> IntegrityError:
        mend = "move it away and run again: what was trained and exported is kept elsewhere"
        return IntegrityError(f"the trial log {self.path} cannot be used", cause=cause, mend=mend)
