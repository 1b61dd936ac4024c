"""SQLite files that survive a kill, and say what is wrong with them in our words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekd.errors import EdgekdError, IntegrityError, UsageError
from edgekd.store.files import disk_full, disk_full_is_an_error


@dataclass(frozen=True, kw_only=True)
class Database:
    """One file, and what to say where it cannot be used."""

    path: Path
    name: str  # "trial log"
    tables: tuple[str, ...]  # statements that make what is absent
    version: int  # of those tables
    mend: str  # for a file that cannot be used
    elsewhere: str = ""  # ", or" how to choose another file

    def prepare(self) -> None:
        """Make the file and its tables where they are absent.

        Raises:
            IntegrityError: the file is none of ours, is damaged, or was written by a newer edgekd.

        """
        with disk_full_is_an_error(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.connection() as connection:
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            if found > self.version:
                raise IntegrityError(
                    f"{self.path} was written by a newer edgekd",
                    cause=f"its schema is {found}, this one knows {self.version}",
                    mend=f"update edgekd{self.elsewhere}",
                )
            for statement in self.tables:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {self.version}")

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Open one transaction: what it wrote is on disk when the block ends well, and undone when it does not."""
        try:
            with closing(sqlite3.connect(self.path, timeout=30.0)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                with connection:
                    yield connection
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error

    def unusable(self, cause: str) -> IntegrityError:
        """Say that the file cannot be used."""
        return IntegrityError(f"the {self.name} {self.path} cannot be used", cause=cause, mend=self.mend)

    def _explained(self, error: sqlite3.DatabaseError) -> EdgekdError:
        if "full" in str(error):
            return disk_full(self.path, str(error))
        if "locked" in str(error):
            mend = f"wait for it to end{self.elsewhere}"
            return UsageError(f"another edgekd writes to {self.path}", cause=str(error), mend=mend)
        return self.unusable(str(error))
