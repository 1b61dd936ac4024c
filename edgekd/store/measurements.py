"""Verdicts of the latency gate and noise floors of machines, in SQLite with a column for each field."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from edgekd.errors import ConfigError
from edgekd.store.database import Database
from edgekd.values.codec import decode, plain
from edgekd.values.gate import Calibration, GateEntry

SCHEMA_VERSION = 2  # 1 kept calibrations in a table that said nothing of threads; it is left unread

T = TypeVar("T")

_TABLES = (
    """CREATE TABLE IF NOT EXISTS comparisons (
        id INTEGER PRIMARY KEY, time TEXT NOT NULL, fingerprint TEXT NOT NULL, name TEXT NOT NULL,
        against TEXT NOT NULL, runtime TEXT NOT NULL, base_sha256 TEXT NOT NULL, candidate_sha256 TEXT NOT NULL,
        ratio REAL, low REAL, high REAL, verdict TEXT NOT NULL,
        base_p50_ms REAL NOT NULL, candidate_p50_ms REAL NOT NULL, reference_p50_ms REAL)""",
    "CREATE INDEX IF NOT EXISTS comparisons_of_series ON comparisons (name, fingerprint, runtime)",
    """CREATE TABLE IF NOT EXISTS noise_floors (
        fingerprint TEXT NOT NULL, device TEXT NOT NULL, runtime TEXT NOT NULL, threads INTEGER NOT NULL,
        reference TEXT NOT NULL,
        decade INTEGER NOT NULL, noise REAL NOT NULL, cpu_noise REAL NOT NULL, p50_ms REAL NOT NULL,
        pair_seconds REAL NOT NULL, pairs INTEGER NOT NULL, date TEXT NOT NULL,
        PRIMARY KEY (fingerprint, runtime, threads, decade))""",
)


class GateLog:
    """The comparisons that ended, in order, and the latest calibration of each machine, runtime, its threads and decade."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(
            path=path,
            name="history",
            tables=_TABLES,
            version=SCHEMA_VERSION,
            mend="move it away: a new one is begun, and `edgekd devices calibrate` finds the noise again",
        )
        self._database.prepare()

    def record(self, entry: GateEntry) -> None:
        """Append a comparison; it is on disk when this returns. A bound that is infinite is kept as absent."""
        self._write("INSERT", "comparisons", entry)

    def series(self, name: str, fingerprint: str, runtime: str) -> tuple[GateEntry, ...]:
        """Return the comparisons of a model on a machine and runtime, in the order they ended."""
        where = "name = ? AND fingerprint = ? AND runtime = ? ORDER BY id"
        return self._read(GateEntry, "comparisons", where, (name, fingerprint, runtime))

    def calibrate(self, calibration: Calibration) -> None:
        """Keep a calibration in place of that of the same fingerprint, runtime, threads and decade."""
        self._write("INSERT OR REPLACE", "noise_floors", calibration)

    def calibration(self, fingerprint: str, runtime: str, decade: int, threads: int) -> Calibration | None:
        """Return the calibration of the nearest decade, of two the noisier faster one; None where there is none."""
        where = "fingerprint = ? AND runtime = ? AND threads = ? ORDER BY abs(decade - ?), decade LIMIT 1"
        found = self._read(Calibration, "noise_floors", where, (fingerprint, runtime, threads, decade))
        return found[0] if found else None

    def calibrations(self) -> tuple[Calibration, ...]:
        """Return every calibration, by machine, runtime, threads and decade."""
        order = "1 ORDER BY device, fingerprint, runtime, threads, decade"
        return self._read(Calibration, "noise_floors", order, ())

    def _write(self, verb: str, table: str, value: GateEntry | Calibration) -> None:
        row = {name: _storable(item) for name, item in plain(value).items()}
        marks = ", ".join("?" * len(row))
        with self._database.connection() as connection:
            # The names are those of a dataclass's fields.
            connection.execute(
                f"{verb} INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values())
            )

    def _read(self, kind: type[T], table: str, where: str, given: Iterable[object]) -> tuple[T, ...]:
        names = _names(kind)
        query = f"SELECT {', '.join(names)} FROM {table} WHERE {where}"  # noqa: S608 - no part is from outside
        with self._database.connection() as connection:
            rows = connection.execute(query, tuple(map(_storable, given))).fetchall()
        try:
            return tuple(decode(kind, dict(zip(names, row)), "row") for row in rows)
        except ConfigError as error:
            raise self._database.unusable(str(error)) from error


def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _storable(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):  # the name of a file may hold bytes that are no UTF-8
        return value.encode(errors="backslashreplace").decode()
    return value
