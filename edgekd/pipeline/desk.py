"""The process that talks to Ray, for as long as a run needs a cluster.

    python -m edgekd.pipeline.desk        orders and replies as `edgekd.wire` has them

Ray ends the process that it runs in where its cluster is gone, and takes over signals and streams: none of that may
happen to a run. What travels to the workers goes as Ray sends things: the samples and the teacher's outputs, orders
as JSON, and states in safetensors, an epoch at a time. A state that came back is written where a training here
would look for it, so that whatever is lost, the epochs before it are not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.distillation.state import saved_progress
from edgekd.errors import DeviceError, EdgekdError, WorkerDied
from edgekd.pipeline.elsewhere import STATE, train_an_epoch, versions
from edgekd.store import replacing
from edgekd.tasks import load
from edgekd.tasks.task import Task
from edgekd.values.checkpoint import Labels
from edgekd.values.codec import encode
from edgekd.values.training import (
    Advanced,
    Connected,
    ConnectOrder,
    Failed,
    News,
    Taken,
    TrainingOrder,
    WaitOrder,
)
from edgekd.wire import Handler, serve

LOCAL = "local"
_LOSSES = 5  # of one epoch, before its training is given up
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# Every port on the loopback interface, and a token of this run's own, which no file keeps.
_PRIVATE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}


@dataclass(kw_only=True)
class _Training:
    """One student on its way."""

    order: TrainingOrder
    state: bytes
    epoch: int
    losses: int = 0  # workers lost in this epoch


class Desk:
    """Trainings in flight, each an epoch at a time."""

    def __init__(self) -> None:
        self._ray: Any = None
        self._remote: Any = None
        self._task: Task | None = None
        self._task_ref: Any = None
        self._labels: dict[str, Any] = {}
        self._flying: dict[Any, _Training] = {}

    def connect(self, order: ConnectOrder) -> Connected:
        """Join the cluster, or start one of processes here, and send it the samples.

        Raises:
            DeviceError: it does not answer, or has no workers.

        """
        os.environ.update(_QUIET)
        if order.address == LOCAL:
            os.environ.update({**_PRIVATE, "RAY_AUTH_TOKEN": os.urandom(32).hex()})
        import ray

        here = {"_temp_dir": order.scratch, "num_cpus": os.cpu_count()} if order.address == LOCAL else {}
        mend = "see `ray status --address ADDRESS`, or train here without --cluster"
        try:
            ray.init(
                address=order.address,
                include_dashboard=False if order.address == LOCAL else None,
                configure_logging=False,
                log_to_driver=False,
                **here,
            )
        except Exception as error:  # Ray has a hundred ways to say it
            cause = f"{type(error).__name__}: {error}"[:500]
            raise DeviceError(f"there is no cluster at {order.address}", cause=cause, mend=mend) from error
        held = ray.cluster_resources()
        gpus, cpus = int(held.get("GPU", 0)), int(held.get("CPU", 0))
        if not (gpus or cpus):
            raise DeviceError(f"the cluster {order.address} has no workers", mend=mend)
        needs = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": 1}
        self._ray = ray
        # Which epoch begins again is decided here, where it can be told.
        self._remote = ray.remote(**needs, max_retries=0)(train_an_epoch)
        self._task = load(order.task, beside=Path(order.beside), cache=Path(order.cache), seed=order.seed)
        self._task_ref = ray.put(self._task)
        return Connected(workers=gpus or cpus, nodes=len(ray.nodes()), task=self._task.fingerprint)

    def train(self, order: TrainingOrder) -> Taken:
        """Send off the next epoch of a training."""
        path = Path(order.folder) / STATE
        path.parent.mkdir(parents=True, exist_ok=True)
        done = saved_progress(path)
        training = _Training(
            order=order, state=path.read_bytes() if done else b"", epoch=done.epoch if done else 0
        )
        if training.epoch < order.epochs:
            self._send(training)
        return Taken(epoch=training.epoch)

    def wait(self, order: WaitOrder) -> News:
        """Return what happened, once something has; or nothing after so many seconds.

        Raises:
            WorkerDied: nobody is left to train.

        """
        ended, _ = self._ray.wait([*self._flying], num_returns=1, timeout=order.seconds)
        advanced, failed, lost = [], [], []
        for ref in ended:
            training = self._flying.pop(ref)
            told = self._told(ref, training)
            if isinstance(told, Advanced):
                advanced.append(told)
            elif isinstance(told, Failed):
                failed.append(told)
            else:
                lost.append(training.order.folder)
        held = self._ray.cluster_resources()
        if self._flying and not ended and not (held.get("CPU") or held.get("GPU")):
            raise WorkerDied("the cluster has no workers left", cause="its head knows of none")
        return News(advanced=tuple(advanced), failed=tuple(failed), lost=tuple(lost))

    def close(self) -> None:
        """Leave the cluster."""
        if self._ray is not None:
            self._ray.shutdown()

    def _send(self, training: _Training) -> None:
        order = training.order
        at = training.epoch % len(order.labels)
        first, own = self._sent(order.labels[0]), self._sent(order.labels[at])
        ref = self._remote.remote(encode(order), self._task_ref, first, own, at, training.state, versions())
        self._flying[ref] = training

    def _sent(self, labels: Labels) -> Any:
        """Put what the teacher said of a view where every worker can read it; once a view."""
        name = "/".join(artifact.sha256 for artifact in labels.outputs.values())
        if name not in self._labels:
            arrays = {
                tap: np.load(one.verified(), mmap_mode="r", allow_pickle=False)
                for tap, one in labels.outputs.items()
            }
            self._labels[name] = self._ray.put(arrays)
        return self._labels[name]

    def _told(self, ref: Any, training: _Training) -> Advanced | Failed | None:
        """Take in what came of an epoch, and send off the next; None where its worker was lost."""
        folder = training.order.folder
        try:
            made = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:  # no error of ours: it was not edgekd that ran
            mend = "install this edgekd, and what it needs, on every node of the cluster"
            return Failed(
                folder=folder,
                kind="DeviceError",
                what="a worker cannot train",
                cause=str(error)[-500:],
                mend=mend,
            )
        except self._ray.exceptions.RayError as error:
            training.losses += 1
            if training.losses < _LOSSES:
                self._send(training)
                return None
            mend = "give the workers more memory or a smaller distillation.batch, then the same command again"
            what = f"{_LOSSES} workers were lost in epoch {training.epoch + 1} of one training"
            return Failed(folder=folder, kind="ResourcesExhausted", what=what, cause=_first(error), mend=mend)
        return self._kept(training, made)

    def _kept(self, training: _Training, made: Mapping[str, Any]) -> Advanced | Failed:
        folder = training.order.folder
        if "state" not in made:
            return Failed(folder=folder, **made)
        try:
            with replacing(Path(folder) / STATE) as partial:
                partial.write_bytes(made["state"])
        except EdgekdError as error:
            kind = type(error).__name__
            return Failed(folder=folder, kind=kind, what=error.what, cause=error.cause, mend=error.mend)
        training.state, training.epoch, training.losses = made["state"], made["epoch"], 0
        if training.epoch < training.order.epochs:
            self._send(training)
        return Advanced(folder=folder, epoch=training.epoch, loss=made["loss"])


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def main() -> None:
    """Carry out orders until there are no more."""
    desk = Desk()
    try:
        serve(
            {
                "connect": Handler(order=ConnectOrder, carry_out=desk.connect),
                "train": Handler(order=TrainingOrder, carry_out=desk.train),
                "wait": Handler(order=WaitOrder, carry_out=desk.wait),
            }
        )
    finally:
        desk.close()


if __name__ == "__main__":
    main()
