"""Students trained on a Ray cluster: what is sent, what comes back, and what becomes of it when the cluster goes away."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from filelock import FileLock

from edgekd import errors
from edgekd.errors import (
    BackendMissing,
    DeviceError,
    EdgekdError,
    IntegrityError,
    ResourcesExhausted,
    UsageError,
    WorkerDied,
)
from edgekd.pipeline.company import several
from edgekd.values.job import Job
from edgekd.values.training import (
    Connected,
    ConnectOrder,
    Failed,
    News,
    Taken,
    TrainingOrder,
    WaitOrder,
)
from edgekd.wire import Child

log = logging.getLogger(__name__)
_R = TypeVar("_R")

details = logging.getLogger("edgekd.cluster")  # epochs pass by: the steps of a run are its pipeline's

_JOIN_S, _SEND_S, _NEWS_S = 180.0, 600.0, 300.0  # until the desk must have answered
_LOOK_S = 2.0
_AGAIN = (
    "what was trained is kept: the same command goes on where it was, and without --cluster it goes on here"
)


@contextmanager
def clustered(
    address: str, job: Job, *, beside: Path, out: Path, or_here: bool = False, live: bool = False
) -> Iterator[Cluster]:
    """Join a Ray cluster, or start one of processes here, for as long as the block lasts.

    Args:
        address: Ray's, such as "10.0.0.1:6379", "auto" or "ray://10.0.0.1:10001"; or "local".
        job: names the samples.
        beside: the folder that the job's relative paths start from.
        out: the folder of the run.
        or_here: train here what is left when the cluster goes away.
        live: the samples were given as an object.

    Raises:
        BackendMissing: Ray is not installed.
        UsageError: the samples cannot be sent, or torchrun started this process.
        DeviceError: the cluster cannot be reached.

    """
    if live:
        raise UsageError(
            "live data cannot be sent to a cluster", mend="name it in task.data, or train without one"
        )
    if several():
        raise UsageError("a cluster and torchrun cannot train the same student", mend="take one of the two")
    if importlib.util.find_spec("ray") is None:
        raise BackendMissing("Ray is not installed", mend="pip install 'edgekd[cluster]'")
    with (
        TemporaryDirectory(prefix="edgekd-ray-", ignore_cleanup_errors=True) as scratch,
        Child("edgekd.pipeline.desk") as desk,
    ):
        order = ConnectOrder(
            address=address,
            task=job.task,
            beside=str(beside.resolve()),
            cache=str((out / "store" / "data").resolve()),
            seed=job.search.seed,
            scratch=scratch,
        )
        try:
            found = desk.ask("connect", order, Connected, timeout_s=_JOIN_S)
        except (WorkerDied, ResourcesExhausted) as error:
            mend = "see `ray status`, or train here without --cluster"
            raise DeviceError(
                f"the cluster {address} cannot be joined", cause=error.cause or error.what, mend=mend
            ) from error
        log.info("%d workers on %d nodes of %s train", found.workers, found.nodes, address)
        yield Cluster(desk=desk, address=address, workers=found.workers, task=found.task, or_here=or_here)


@dataclass(kw_only=True)
class Cluster:
    """A cluster that was joined."""

    desk: Child
    address: str
    workers: int
    task: str  # fingerprint of the samples that it has
    or_here: bool = False
    epochs: int = 0  # trained there
    lost: int = 0  # of them, those that begun again with another worker
    gone: EdgekdError | None = None  # why it does not answer any more

    def train(self, orders: Sequence[TrainingOrder]) -> None:
        """Train each student to its last epoch; its state is then where a training here would take it up.

        One that diverges is left to the training here, which says so. Nothing happens where the cluster is gone, and
        this machine may take over.

        Raises:
            DeviceError: the cluster went away.
            ResourcesExhausted: a disk or a worker's memory is full.
            IntegrityError: the cluster was sent other samples.

        """
        if any(order.task != self.task for order in orders):
            mend = "give the same command again"
            raise IntegrityError("the data changed since the cluster read it", mend=mend)
        try:
            if self.gone is None:
                self._train(orders)
        except _Gone as gone:
            self.gone = gone.error
            if self.or_here:
                log.warning("the cluster %s went away (%s): going on here", self.address, _words(gone.error))
        if self.gone is not None and not self.or_here:
            what = f"the cluster {self.address} went away"
            raise DeviceError(what, cause=_words(self.gone), mend=_AGAIN) from self.gone

    def _train(self, orders: Sequence[TrainingOrder]) -> None:
        left = {order.folder: order for order in orders}
        with ExitStack() as stack:
            for folder, order in list(left.items()):
                Path(folder).mkdir(parents=True, exist_ok=True)
                stack.enter_context(
                    FileLock(Path(folder) / ".lock")
                )  # as the store has it while a stage runs
                log.info("%d epochs of %s, on the cluster", order.epochs, order.spec)
                taken = self._asked("train", order, Taken, _SEND_S)
                if taken.epoch >= order.epochs:
                    del left[folder]
            while left:
                self._take_in(self._asked("wait", WaitOrder(seconds=_LOOK_S), News, _NEWS_S), left)

    def _take_in(self, news: News, left: dict[str, TrainingOrder]) -> None:
        for one in news.advanced:
            order = left[one.folder]
            self.epochs += 1
            details.info("%s: epoch %d/%d, loss %.3f", order.spec, one.epoch, order.epochs, one.loss)
            if one.epoch >= order.epochs:
                del left[one.folder]
        for folder in news.lost:
            self.lost += 1
            log.warning("a worker was lost: an epoch of %s begins again", left[folder].spec)
        for failed in news.failed:
            spec = left.pop(failed.folder).spec
            if failed.kind != "TrainingError":
                raise _error_of(failed)
            log.info("  %s diverged on the cluster", spec)

    def _asked(self, name: str, order: object, reply: type[_R], timeout_s: float) -> _R:
        try:
            return self.desk.ask(name, order, reply, timeout_s=timeout_s)
        except (WorkerDied, ResourcesExhausted) as error:
            raise _Gone(error) from error


class _Gone(Exception):  # noqa: N818 - a turn of events that train() handles
    """The desk, or the cluster that it talks to, does not answer any more."""

    def __init__(self, error: EdgekdError) -> None:
        super().__init__(error.what)
        self.error = error


def _words(error: EdgekdError) -> str:
    return error.what + (f": {error.cause}" if error.cause else "")


def _error_of(failed: Failed) -> EdgekdError:
    kind = getattr(errors, failed.kind, DeviceError)
    known = isinstance(kind, type) and issubclass(kind, EdgekdError)
    return (kind if known else DeviceError)(failed.what, cause=failed.cause, mend=failed.mend or _AGAIN)
