"""One student trained by several processes: torchrun starts them all with one command, and the first of them leads.

The leader runs the verb. The others load the same data, and wait for the trainings in which they take part.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekd.errors import IntegrityError, TrainingError
from edgekd.values.job import Job

log = logging.getLogger(__name__)


def helps() -> bool:
    """Whether torchrun started this process to help another."""
    return os.environ.get("RANK", "0") != "0" and several()


@contextmanager
def company() -> Iterator[None]:
    """Lead the other processes that torchrun started, where there are any."""
    if not several():
        yield
        return
    from edgekd.distillation.parallel import meeting

    with meeting() as met:
        log.info("%d processes train each student together", met.crew.size)
        yield


def help_to_train(job: Job, *, beside: Path, out: Path) -> int:
    """Take part in the leader's trainings until it has no more; return how many there were.

    Raises:
        IntegrityError: the data here is not the leader's.
        UsageError: the leader's folder is not shared with this machine.
        WorkerDied: the leader is gone.

    """
    import json

    from edgekd.distillation.parallel import meeting
    from edgekd.stages.distill import take_part
    from edgekd.tasks import load
    from edgekd.values.codec import decode
    from edgekd.values.training import TrainingOrder

    task, count = None, 0
    with meeting() as met:
        for text in met.orders():
            order = decode(TrainingOrder, json.loads(text), "order")
            # The leader has read the data by now, and left it decoded for all.
            task = task or load(job.task, beside=beside, cache=out / "store" / "data", seed=job.search.seed)
            if task.fingerprint != order.task:
                cause = "what the job names holds other samples or settings"
                raise IntegrityError(
                    "the data is not what the leading process trains on",
                    cause=cause,
                    mend="give all processes the same job and data",
                )
            try:
                take_part(order, task, met.crew)
            except TrainingError as error:
                log.warning("%s", error.what)  # the leader's search goes on
            count += 1
    return count


def several() -> bool:
    """Whether torchrun started this process beside others."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") and "RANK" in os.environ
