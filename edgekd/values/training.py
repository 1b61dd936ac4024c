"""A training that another process, or another machine, takes part in or takes over."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.values.checkpoint import Labels
from edgekd.values.job import DistillationSection, TaskSection
from edgekd.values.student import StudentSpec


@dataclass(frozen=True, kw_only=True)
class TrainingOrder:
    """What a student is trained to do: all but the samples, which are named by their digest."""

    spec: StudentSpec
    task: str  # fingerprint of the samples
    labels: tuple[Labels, ...]
    recipe: DistillationSection
    epochs: int
    seed: int
    folder: str = ""  # where the state is, for a process on the same file system


@dataclass(frozen=True, kw_only=True)
class ConnectOrder:
    """Which cluster trains, and on what."""

    address: str  # of Ray's, or "local"
    task: TaskSection
    beside: str  # the folder that the task's path starts from
    cache: str
    seed: int
    scratch: str  # a folder for what Ray writes where it runs here


@dataclass(frozen=True, kw_only=True)
class Connected:
    """What the cluster is."""

    workers: int  # trainings at a time
    nodes: int
    task: str  # fingerprint of the samples that were sent to it


@dataclass(frozen=True, kw_only=True)
class WaitOrder:
    """Wait for news, but not for long."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class Advanced:
    """One epoch more: its state is in the training's folder."""

    folder: str
    epoch: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class Failed:
    """What ended a training."""

    folder: str
    kind: str  # of edgekd.errors
    what: str
    cause: str = ""
    mend: str = ""


@dataclass(frozen=True, kw_only=True)
class News:
    """What happened to the trainings since the last news."""

    advanced: tuple[Advanced, ...] = ()
    failed: tuple[Failed, ...] = ()
    lost: tuple[str, ...] = ()  # folders whose worker was lost: the epoch begins again elsewhere


@dataclass(frozen=True, kw_only=True)
class Taken:
    """An order was taken."""

    epoch: int  # done before
