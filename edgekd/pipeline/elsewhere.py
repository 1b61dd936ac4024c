"""One epoch on a worker of a cluster: a state goes in, the next one comes out, and nothing stays behind."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray

from edgekd.errors import DeviceError, EdgekdError
from edgekd.stages.distill import distill_an_epoch
from edgekd.tasks.task import Task
from edgekd.values.codec import decode
from edgekd.values.training import TrainingOrder

STATE = "state.safetensors"
TOOLS = ("edgekd", "torch")  # whose versions can change what is learnt

Targets = Mapping[str, NDArray[Any]]  # what the teacher said of a view, by tap


def versions() -> dict[str, str]:
    """Return the versions of what trains here."""
    return {name: importlib.metadata.version(name) for name in TOOLS}


def train_an_epoch(  # noqa: PLR0917 - Ray resolves what stands at the top level of a call
    order: str, task: Task, first: Targets, own: Targets, at: int, state: bytes, expected: Mapping[str, str]
) -> dict[str, Any]:
    """Train the epoch that follows a state; return the next state, or what went wrong.

    Args:
        order: a `TrainingOrder` as JSON.
        task: the samples.
        first: what the teacher said of the first view.
        own: what it said of the view of this epoch.
        at: the number of that view.
        state: safetensors; empty at the start.
        expected: the versions that the leading machine trains with.

    """
    try:
        if (here := versions()) != dict(expected):
            told = ", ".join(f"{name} {here[name]} (not {expected[name]})" for name in here)
            mend = "install the same versions on every node of the cluster"
            raise DeviceError(
                "a worker of the cluster would train otherwise", cause=f"it has {told}", mend=mend
            )
        with TemporaryDirectory(prefix="edgekd-") as scratch:
            folder = Path(scratch)
            if state:
                (folder / STATE).write_bytes(state)
            asked = decode(TrainingOrder, json.loads(order), "order")
            progress = distill_an_epoch(folder, asked, task, {0: first, at: own})
            loss = progress.losses[-1] if progress.losses else 0.0
            return {"state": (folder / STATE).read_bytes(), "epoch": progress.epoch, "loss": loss}
    except EdgekdError as error:
        return {"kind": type(error).__name__, "what": error.what, "cause": error.cause, "mend": error.mend}
