from __future__ import annotations

import dataclasses
import math
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.errors import EdgekdError, IntegrityError, ResourcesExhausted, UsageError
from edgekd.store import GateLog
from edgekd.values.gate import Calibration, GateEntry, GateVerdict

ENTRY = GateEntry(
    time="2026-01-02T03:04:05Z",
    fingerprint="f" * 64,
    name="digits",
    against="base",
    runtime="openvino",
    base_sha256="a" * 64,
    candidate_sha256="b" * 64,
    ratio=1.049,
    low=1.041,
    high=1.058,
    verdict=GateVerdict.FAIL,
    base_p50_ms=0.5,
    candidate_p50_ms=0.525,
    reference_p50_ms=1.25,
)
CALIBRATION = Calibration(
    fingerprint="f" * 64,
    device="local",
    runtime="openvino",
    threads=1,
    reference="chain",
    decade=0,
    noise=0.012,
    cpu_noise=0.004,
    p50_ms=1.25,
    pair_seconds=2.5,
    pairs=40,
    date="2026-01-02",
)


@pytest.fixture
def log(tmp_path: Path) -> GateLog:
    return GateLog(tmp_path / "deep" / "history.sqlite")


def test_one_thread_and_two_are_two_machines_to_a_noise_floor(log: GateLog):
    two = replace(CALIBRATION, threads=2, noise=0.05)
    log.calibrate(CALIBRATION)
    log.calibrate(two)
    assert log.calibrations() == (CALIBRATION, two)
    assert log.calibration("f" * 64, "openvino", 0, 1) == CALIBRATION
    assert log.calibration("f" * 64, "openvino", 0, 2) == two
    assert log.calibration("f" * 64, "openvino", 0, 4) is None


def test_a_file_of_the_first_schema_keeps_its_comparisons_and_is_calibrated_anew(tmp_path: Path):
    path = tmp_path / "history.sqlite"
    GateLog(path).record(ENTRY)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE noise_floors")
        connection.execute("CREATE TABLE calibrations (fingerprint TEXT, runtime TEXT, decade INTEGER)")
        connection.execute("INSERT INTO calibrations VALUES ('f', 'openvino', 0)")
        connection.execute("PRAGMA user_version = 1")
    log = GateLog(path)
    assert log.series(ENTRY.name, ENTRY.fingerprint, ENTRY.runtime) == (ENTRY,)
    assert log.calibrations() == ()
    log.calibrate(CALIBRATION)
    assert log.calibrations() == (CALIBRATION,)


def test_comparisons_come_back_in_order_and_apart_by_series(log: GateLog):
    later = replace(
        ENTRY, time="2025-01-01T00:00:00Z", verdict=GateVerdict.PASS
    )  # order is that of recording
    others = [replace(ENTRY, **{key: "other"}) for key in ("name", "fingerprint", "runtime")]
    for entry in (ENTRY, *others, later):
        log.record(entry)
    assert GateLog(log.path).series("digits", "f" * 64, "openvino") == (ENTRY, later)
    assert log.series("other", "f" * 64, "openvino") == (others[0],)
    assert log.series("none", "f" * 64, "openvino") == ()


def test_what_could_not_be_compared_is_kept_without_a_ratio(log: GateLog):
    entry = replace(
        ENTRY, ratio=None, low=None, high=None, reference_p50_ms=None, verdict=GateVerdict.ENVIRONMENT
    )
    log.record(entry)
    assert log.series("digits", "f" * 64, "openvino") == (entry,)


def test_an_infinite_bound_is_kept_as_absent(log: GateLog):
    log.record(replace(ENTRY, low=-math.inf, high=math.inf))
    assert log.series("digits", "f" * 64, "openvino") == (replace(ENTRY, low=None, high=None),)


def test_a_name_that_no_text_can_hold_is_kept_and_found(log: GateLog):
    name = os.fsdecode(b"mod\xe9le'); DROP TABLE comparisons; --")
    log.record(replace(ENTRY, name=name))
    (found,) = log.series(name, "f" * 64, "openvino")
    assert "le'); DROP" in found.name


def test_every_field_of_the_values_has_its_column(log: GateLog):
    with closing(sqlite3.connect(log.path)) as connection:
        for table, kind in (("comparisons", GateEntry), ("noise_floors", Calibration)):
            columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            assert columns - {"id"} == {field.name for field in dataclasses.fields(kind)}


def test_a_calibration_replaces_that_of_the_same_machine_runtime_and_decade(log: GateLog):
    newer = replace(CALIBRATION, noise=0.02, date="2026-02-03")
    other = replace(CALIBRATION, runtime="onnxruntime")
    for calibration in (CALIBRATION, other, newer):
        log.calibrate(calibration)
    assert log.calibration("f" * 64, "openvino", 0, 1) == newer
    assert log.calibrations() == (other, newer)


@pytest.mark.parametrize(("decade", "nearest"), [(-5, -1), (-1, -1), (0, -1), (1, 1), (9, 1)])
def test_the_calibration_of_the_nearest_decade_is_given(log: GateLog, decade: int, nearest: int):
    for at in (1, -1):
        log.calibrate(replace(CALIBRATION, decade=at))
    assert log.calibration("f" * 64, "openvino", decade, 1) == replace(CALIBRATION, decade=nearest)


def test_another_machine_or_runtime_has_no_calibration(log: GateLog):
    log.calibrate(CALIBRATION)
    assert log.calibration("e" * 64, "openvino", 0, 1) is None
    assert log.calibration("f" * 64, "onnxruntime", 0, 1) is None


WRITER = """
import dataclasses, json, sys
from pathlib import Path
from edgekd.store import GateLog
from edgekd.values.codec import decode
from edgekd.values.gate import GateEntry

log = GateLog(Path(sys.argv[1]))
entry = decode(GateEntry, json.loads(sys.argv[2]))
while True:
    log.record(entry)
    print("recorded", flush=True)
"""


def test_what_was_recorded_survives_a_kill(tmp_path: Path):
    from edgekd.values.codec import encode

    path = tmp_path / "history.sqlite"
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", WRITER, str(path), encode(ENTRY)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    ) as writer:
        assert writer.stdout is not None
        recorded = sum(writer.stdout.readline() == "recorded\n" for _ in range(3))
        writer.send_signal(signal.SIGKILL)
        recorded += writer.stdout.read().count("recorded\n")
    kept = GateLog(path).series(ENTRY.name, ENTRY.fingerprint, ENTRY.runtime)
    assert kept in ((ENTRY,) * recorded, (ENTRY,) * (recorded + 1))  # one more: killed before it could say so
    assert recorded >= 3


def test_a_history_of_a_newer_edgekd_is_refused_and_left_alone(log: GateLog):
    log.record(ENTRY)
    with closing(sqlite3.connect(log.path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(IntegrityError, match="newer edgekd") as caught:
        GateLog(log.path)
    assert "update edgekd" in caught.value.mend
    with closing(sqlite3.connect(log.path)) as connection:
        assert connection.execute("SELECT count(*) FROM comparisons").fetchone() == (1,)


def test_a_file_that_is_no_history_is_refused(tmp_path: Path):
    (tmp_path / "history.sqlite").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(IntegrityError, match="cannot be used"):
        GateLog(tmp_path / "history.sqlite")


def test_a_database_of_somebody_else_is_refused_when_it_is_read(tmp_path: Path):
    with closing(sqlite3.connect(tmp_path / "history.sqlite")) as connection:
        connection.execute("CREATE TABLE comparisons (name TEXT, fingerprint TEXT, runtime TEXT)")
        connection.execute("CREATE TABLE noise_floors (id INTEGER)")
    log = GateLog(tmp_path / "history.sqlite")
    for read in (lambda: log.series("a", "b", "c"), log.calibrations, lambda: log.record(ENTRY)):
        with pytest.raises(IntegrityError, match="cannot be used"):
            read()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE comparisons SET verdict = 'WONDERFUL'",
        "UPDATE comparisons SET base_p50_ms = 'fast'",
        "UPDATE comparisons SET ratio = 9e999",
        "UPDATE comparisons SET name = CAST(x'ff' AS TEXT), time = CAST(x'ff' AS TEXT) WHERE 1",
        "UPDATE comparisons SET time = x'00ff'",
    ],
)
def test_a_row_that_is_no_comparison_is_refused(log: GateLog, damage: str):
    log.record(ENTRY)
    with closing(sqlite3.connect(log.path)) as connection, connection:
        connection.execute(damage.replace("name = CAST(x'ff' AS TEXT), ", ""))
    with pytest.raises(IntegrityError, match="cannot be used"):
        log.series("digits", "f" * 64, "openvino")


def test_a_row_that_is_no_calibration_is_refused(log: GateLog):
    log.calibrate(CALIBRATION)
    with closing(sqlite3.connect(log.path)) as connection, connection:
        connection.execute("UPDATE noise_floors SET pairs = 'many'")
    with pytest.raises(IntegrityError, match="cannot be used"):
        log.calibrations()


def test_a_place_that_cannot_hold_a_history_is_an_error_of_ours(tmp_path: Path):
    (tmp_path / "history.sqlite").mkdir()
    with pytest.raises(EdgekdError, match="history"):
        GateLog(tmp_path / "history.sqlite")


@pytest.mark.parametrize(
    ("problem", "kind"),
    [("database or disk is full", ResourcesExhausted), ("database is locked", UsageError)],
)
def test_a_full_disk_and_a_busy_history_are_told_apart(
    log: GateLog, monkeypatch: pytest.MonkeyPatch, problem: str, kind: type[EdgekdError]
):
    def fail(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError(problem)

    monkeypatch.setattr(sqlite3, "connect", fail)
    with pytest.raises(kind, match="history"):
        log.record(ENTRY)
