"""A program: the rehearsed job, stopped again and again by a fault, until a run comes to its end.

    python -m tests.pipeline.interrupted FOLDER FAULT:AT ...

Every run is a fork of this process, so that it dies as a process does; the first one meets the fault at call number AT, each later one a call later.
Its output says how each one ended.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd import pipeline
from edgekd.distillation.teachers import from_module
from edgekd.errors import EdgekdError
from edgekd.stages.evaluate import teacher_model
from edgekd.store import files
from edgekd.values.job import Job
from tests.pipeline import rehearsed

MOST_RUNS = 40
KILLED = 137

Fault = Callable[[pytest.MonkeyPatch, int], None]


def nothing(patch: pytest.MonkeyPatch, at: int) -> None:
    """Let the run come to its end."""


def killed_in_a_write(patch: pytest.MonkeyPatch, at: int) -> None:
    """Die at a flush: an odd one finds the new file not yet in its place, an even one finds it there."""
    _replace(patch, "edgekd.store.files._sync", files._sync, at, lambda: os._exit(KILLED))


def killed_in_a_record(patch: pytest.MonkeyPatch, at: int) -> None:
    """Die before a trial is logged."""
    from edgekd.store import TrialLog

    _replace(patch, "edgekd.store.TrialLog.record", TrialLog.record, at, lambda: os._exit(KILLED))


def killed_in_a_step(patch: pytest.MonkeyPatch, at: int) -> None:
    """Die before a step of a training."""
    from edgekd.distillation.loop import take_step

    _replace(patch, "edgekd.distillation.loop.take_step", take_step, at, lambda: os._exit(KILLED))


def disk_full_in_a_write(patch: pytest.MonkeyPatch, at: int) -> None:
    """Find no room at a flush."""
    _replace(patch, "edgekd.store.files._sync", files._sync, at, _no_room)


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (nothing, killed_in_a_write, killed_in_a_record, killed_in_a_step, disk_full_in_a_write)
}


def _replace(
    patch: pytest.MonkeyPatch, name: str, real: Callable[..., Any], at: int, happen: Callable[[], None]
) -> None:
    calls = 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            happen()
        return real(*arguments)

    patch.setattr(name, counted)


def _no_room() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def attempt(out: Path, job: Job, fault: Fault, at: int) -> int:
    """Run the job in a fork; return its exit code."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        with pytest.MonkeyPatch.context() as patch:
            rehearsed.stay_in_this_process(patch)
            fault(patch, at)
            pipeline.run(job, out=out, teacher=rehearsed.teacher(), data=rehearsed.digits())
        os._exit(0)
    except EdgekdError as error:
        sys.stderr.write(f"{error}\n")
        os._exit(error.exit_code)
    except BaseException:  # noqa: BLE001 - the fork must not go on as its parent would
        traceback.print_exc()
    finally:
        os._exit(70)


def until_the_end(out: Path, job: Job, fault: Fault, at: int) -> list[int]:
    """Run until a run comes to its end; return the exit codes.

    Each run gets one call further than the one before: a bundle is always written anew, and must fit in.
    """
    codes: list[int] = []
    while len(codes) < MOST_RUNS and (not codes or codes[-1] in (KILLED, 7)):
        codes.append(attempt(out, job, fault, at + len(codes)))
    return codes


def main() -> None:
    """Carry out every fault named, each in a folder of its own."""
    folder = Path(sys.argv[1])
    job = rehearsed.with_(
        rehearsed.JOB, target={"profile": rehearsed.float_profile(folder)}, search={"probes": 3}
    )
    task = rehearsed.digits()
    # Every fork then finds the exporter loaded.
    teacher_model(folder, from_module(rehearsed.teacher(), task), task)
    ended = {}
    for argument in sys.argv[2:]:
        name, at = argument.split(":")
        ended[name] = until_the_end(folder / name, job, FAULTS[name], int(at))
    sys.stdout.write(json.dumps(ended) + "\n")


if __name__ == "__main__":
    main()
