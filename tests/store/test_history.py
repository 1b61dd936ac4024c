from __future__ import annotations

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
from edgekd.store import TrialLog
from edgekd.values.codec import encode
from edgekd.values.trial import Trial, Verdict


def test_trials_come_back_in_order_and_apart_by_job(tmp_path: Path, trial: Trial) -> None:
    log = TrialLog(tmp_path / "deep" / "trials.sqlite")
    other = replace(trial, verdict=Verdict.TOO_SLOW, why="2 ms")
    for job, one in (("a", trial), ("b", trial), ("a", other)):
        log.record(job, one)
    assert TrialLog(log.path).history("a").trials == (trial, other)
    assert log.history("b").trials == (trial,)
    assert log.history("c").trials == ()


WRITER = """
import json, sys
from pathlib import Path
from edgekd.store import TrialLog
from edgekd.values.codec import decode
from edgekd.values.trial import Trial

log = TrialLog(Path(sys.argv[1]))
trial = decode(Trial, json.loads(sys.stdin.readline()))
while True:
    log.record("job", trial)
    print("recorded", flush=True)
"""


def test_what_was_recorded_survives_a_kill_at_any_moment(tmp_path: Path, trial: Trial) -> None:
    path = tmp_path / "trials.sqlite"
    root = str(Path(__file__).resolve().parents[2])
    recorded = 0
    for pause in (1, 4, 9):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write(encode(trial) + "\n")
        writer.stdin.flush()
        for _ in range(pause):
            assert writer.stdout.readline() == "recorded\n"
            recorded += 1
        writer.send_signal(signal.SIGKILL)
        with writer:
            recorded += writer.stdout.read().count("recorded\n")
        kept = TrialLog(path).history("job").trials
        assert len(kept) in (recorded, recorded + 1)  # one more: killed before it could say so
        assert kept == (trial,) * len(kept)
        recorded = len(kept)


def test_a_log_of_a_newer_edgekd_is_refused_and_left_alone(tmp_path: Path, trial: Trial) -> None:
    log = TrialLog(tmp_path / "trials.sqlite")
    log.record("a", trial)
    with closing(sqlite3.connect(log.path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(IntegrityError, match="newer edgekd") as caught:
        TrialLog(log.path)
    assert caught.value.exit_code == 6
    assert "update edgekd" in caught.value.mend
    with closing(sqlite3.connect(log.path)) as connection:
        assert connection.execute("SELECT count(*) FROM trials").fetchone() == (1,)


def test_a_file_that_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trials.sqlite").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(IntegrityError, match="cannot be used"):
        TrialLog(tmp_path / "trials.sqlite")


def test_a_row_that_is_no_trial_is_refused(tmp_path: Path, trial: Trial) -> None:
    log = TrialLog(tmp_path / "trials.sqlite")
    log.record("a", trial)
    with closing(sqlite3.connect(log.path)) as connection, connection:
        connection.execute("UPDATE trials SET trial = '{\"verdict\": 3}'")
    with pytest.raises(IntegrityError, match="cannot be used"):
        log.history("a")


def test_a_place_that_cannot_hold_a_log_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "trials.sqlite").mkdir()
    with pytest.raises(EdgekdError, match="trials"):
        TrialLog(tmp_path / "trials.sqlite")


@pytest.mark.parametrize(
    ("problem", "kind"),
    [("database or disk is full", ResourcesExhausted), ("database is locked", UsageError)],
)
def test_a_full_disk_and_a_busy_log_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trial: Trial, problem: str, kind: type[EdgekdError]
) -> None:
    log = TrialLog(tmp_path / "trials.sqlite")

    def fail(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError(problem)

    monkeypatch.setattr(sqlite3, "connect", fail)
    with pytest.raises(kind, match="trials"):
        log.record("a", trial)
