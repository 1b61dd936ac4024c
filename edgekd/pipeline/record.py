"""What a finished run leaves beside its files, so that its report can be written again without the job."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from edgekd.errors import ConfigError, IntegrityError, UsageError
from edgekd.stages.ask_optuna import export_study
from edgekd.stages.report import ReportContent, report
from edgekd.store import TrialLog, write_text
from edgekd.values.budget import Limits
from edgekd.values.codec import decode, plain
from edgekd.values.job import Job
from edgekd.values.trial import History

SCHEMA_VERSION = 1
RECORD, REPORT, TRIALS = "run.json", "report.html", "trials.sqlite"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """`run.json`: the job, and all that its report shows but the trials, which are in `trials.sqlite`."""

    job: Job
    key: str  # of the job's trials in the log
    content: ReportContent
    schema_version: int = SCHEMA_VERSION


def save_record(out: Path, job: Job, key: str, content: ReportContent) -> Path:
    """Write `out/run.json`."""
    record = RunRecord(job=job, key=key, content=replace(content, history=History()))
    return write_text(out / RECORD, json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n")


def report_again(out: Path) -> Path:
    """Write the report of the run in `out` again, from its record and its trials.

    Raises:
        UsageError: no run has ended there.
        IntegrityError: what it left is damaged.

    """
    record = _ended(out)
    history = TrialLog(out / TRIALS).history(record.key)
    return report(out / REPORT, replace(record.content, history=history))


def study_of(out: Path, storage: str) -> int:
    """Write the trials of the run in `out` to Optuna's storage, as a study of its name; return how many.

    Raises:
        UsageError: no run has ended there, or Optuna is not installed.
        IntegrityError: what it left is damaged.
        DataError: the storage cannot be written, or has this study.

    """
    record = _ended(out)
    history, content = TrialLog(out / TRIALS).history(record.key), record.content
    limit = Limits(latency_ms=content.limits_ms, confidence=content.confidence)
    limits = {trial.proposal.runtime: limit for trial in history.trials} if content.limits_ms else {}
    return export_study(history, limits, storage, content.name)


def _ended(out: Path) -> RunRecord:
    path = out / RECORD
    if not path.is_file() or not (out / TRIALS).is_file():
        missing = RECORD if not path.is_file() else TRIALS
        mend = "give the folder of a finished run, or finish it with the `edgekd run` that began it"
        raise UsageError(f"{out} holds no finished run", cause=f"it has no {missing}", mend=mend)
    try:
        return decode(RunRecord, json.loads(path.read_text(encoding="utf-8")), RECORD)
    except (ConfigError, ValueError) as error:
        mend = "give the same `edgekd run` again: what it computed is kept"
        raise IntegrityError(
            f"{path} is damaged, or another version's", cause=str(error)[:300], mend=mend
        ) from error
