"""The verbs: each says in which order the stages happen, and nothing below knows it.

Everything is imported late, so that a verb that needs no torch starts without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.values.job import Job
from edgekd.values.outcome import Outcome, Plan

if TYPE_CHECKING:
    from torch import nn

    from edgekd.tasks.classification import ImageClassification

__all__ = ["plan", "run"]


def run(
    job: Job,
    *,
    beside: Path = Path(),
    name: str = "run",
    out: Path | None = None,
    command: str = "",
    teacher: nn.Module | None = None,
    data: ImageClassification | None = None,
) -> Outcome:
    """Find, train and deliver the best student that meets the budget on the target.

    Args:
        job: what is asked for.
        beside: the folder that the job's relative paths start from.
        name: of the run and its bundle.
        out: where store, trials, bundle and report go; by default `runs/NAME`. The same job in the same
            folder goes on where it was interrupted.
        command: that makes this run again, for the report.
        teacher: a live torch module in place of `job.teacher.model`; (B, C, H, W) -> (B, classes).
        data: live data in place of `job.task.data`, from `edgekd.tasks.from_arrays` or `from_dataset`.

    Raises:
        EdgekdError: see `edgekd.errors`; `BudgetError` where no student meets the budget.

    """
    from edgekd.pipeline.loop import close_the_loop

    out = out or Path("runs") / name
    return close_the_loop(job, beside=beside, name=name, out=out, command=command, teacher=teacher, data=data)


def plan(job: Job, *, beside: Path = Path(), name: str = "run", out: Path | None = None) -> Plan:
    """Say what the device can do with the budget, with nothing trained."""
    from edgekd.pipeline.planning import make_plan

    return make_plan(job, beside=beside, name=name, out=out or Path("runs") / name)
