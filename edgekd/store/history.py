"""Trials in SQLite: the log that a search is a pure function of."""

from __future__ import annotations

import json
from pathlib import Path

from edgekd.errors import ConfigError
from edgekd.store.database import Database
from edgekd.values.codec import decode, encode
from edgekd.values.trial import History, Trial

SCHEMA_VERSION = 1

_TABLES = (
    "CREATE TABLE IF NOT EXISTS trials (id INTEGER PRIMARY KEY, job TEXT NOT NULL, trial TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS trials_of_job ON trials (job)",
)


class TrialLog:
    """The trials of every job that used this file, in the order they ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(
            path=path,
            name="trial log",
            tables=_TABLES,
            version=SCHEMA_VERSION,
            mend="move it away and run again: what was trained and exported is kept elsewhere",
            elsewhere=", or give another --out",
        )
        self._database.prepare()

    def history(self, job: str) -> History:
        """Return the trials of the job with this fingerprint."""
        with self._database.connection() as connection:
            rows = connection.execute("SELECT trial FROM trials WHERE job = ? ORDER BY id", (job,)).fetchall()
        try:
            return History(trials=tuple(decode(Trial, json.loads(text), "trial") for (text,) in rows))
        except (ConfigError, ValueError, TypeError) as error:
            raise self._database.unusable(str(error)) from error

    def record(self, job: str, *trials: Trial) -> None:
        """Append trials that belong together, all or none; they are on disk when this returns."""
        rows = [(job, encode(trial)) for trial in trials]
        with self._database.connection() as connection:
            connection.executemany("INSERT INTO trials (job, trial) VALUES (?, ?)", rows)
