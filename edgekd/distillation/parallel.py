"""Several processes that train one student: each takes its part of every batch, and all take the same step.

It is what DistributedDataParallel does, for a module and the adapters beside it at once: gradients are summed over
the processes, each weighted by its share of the batch. The batch of the recipe is the whole one, whoever takes part,
so that one recipe means one result, up to the order of float sums. What looks at several samples at once sees a
process's own part only: batch norm in training, relation losses, mixed negatives and memory banks.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from edgekd.errors import UsageError, WorkerDied

_PATIENCE = timedelta(minutes=30)  # for another process's part of a step, the leader's saving included
_LOOK_S = 0.1  # between looks for an order: a student takes seconds at least
_END = "end"
_AGAIN = "give the same command again: it goes on after the last whole epoch"
_HERE = ("127.0.0.1", "localhost", "::1")
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets


@dataclass(frozen=True, kw_only=True)
class Crew:
    """The processes of one training; the first leads: it alone writes and talks."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this process's part of a batch.

        Raises:
            UsageError: there are fewer samples than processes.

        """
        if self.size == 1:
            return indices
        if len(indices) < self.size:
            mend = "give a larger distillation.batch, or start fewer processes"
            raise UsageError(
                f"a batch of {len(indices)} cannot be shared by {self.size} processes", mend=mend
            )
        return np.array_split(indices, self.size)[self.rank]

    def seed(self, seed: int) -> int:
        """Return a seed of this process's own; the leader's is as if it were alone."""
        return seed + 1_000_000_007 * self.rank

    def meet(self) -> None:
        """Wait until all are here."""
        if self.size > 1:
            with _all_there():
                dist.barrier()

    def agree(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the leader's tensors, in place."""
        if self.size > 1:
            for name in sorted(tensors):
                held = tensors[name].detach()
                whole = held.contiguous()
                with _all_there():
                    dist.broadcast(whole, src=0)
                held.copy_(whole)

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of every process's value."""
        if self.size == 1:
            return value
        value = value.detach().clone()
        with _all_there():
            dist.all_reduce(value)
        return value

    @torch.no_grad()
    def sum_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Give each weight the sum of every process's gradients; one that has none anywhere keeps none."""
        if self.size == 1:
            return
        sizes = [weight.numel() for weight in weights]
        known = torch.tensor([float(weight.grad is not None) for weight in weights], device=weights[0].device)
        own = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        flat = torch.cat([known, *(gradient.flatten().float() for gradient in own)])  # one message a step
        with _all_there():
            dist.all_reduce(flat)
        counts, *sums = torch.split(flat, [len(weights), *sizes])
        for weight, count, gradient, total in zip(weights, counts.tolist(), own, sums):
            if count:
                weight.grad = gradient.copy_(total.view(weight.shape))


@contextmanager
def _all_there() -> Iterator[None]:
    """Say in our words that another process does not answer any more."""
    try:
        yield
    except RuntimeError as error:
        raise WorkerDied("a process of this training is gone", cause=_first(error), mend=_AGAIN) from error


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


ALONE = Crew()


def asked_for() -> Crew:
    """Return what torchrun's environment says of this process; `ALONE` where nothing."""
    try:
        crew = Crew(rank=int(os.environ.get("RANK", "0")), size=int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError as error:
        raise UsageError(
            "RANK and WORLD_SIZE are no numbers", cause=str(error), mend="start it with torchrun"
        ) from error
    missing = [name for name in _VARIABLES if name not in os.environ]
    if crew.size > 1 and missing:
        cause = f"{', '.join(missing)} is not in the environment"
        raise UsageError(
            "the processes of a training cannot find each other", cause=cause, mend="start it with torchrun"
        )
    return crew


class Meeting:
    """A crew that has met, and the board on which its leader leaves orders for the others."""

    def __init__(self, crew: Crew, board: Store) -> None:
        self.crew = crew
        self._board = board
        self._orders = 0

    def order(self, text: str) -> None:
        """Tell the others what is trained next."""
        self._board.set(f"order/{self._orders}", text)
        self._orders += 1

    def end(self) -> None:
        """Tell the others, where this process leads, that there is nothing more to do."""
        if self.crew.leads:
            self.order(_END)

    def orders(self) -> Iterator[str]:
        """Give the leader's orders as they come, until it has no more.

        Raises:
            WorkerDied: the leader cannot be reached any more.

        """
        while (text := self._next()) != _END:
            yield text

    def _next(self) -> str:
        key = f"order/{self._orders}"
        self._orders += 1
        try:
            while not self._board.check([key]):  # the library's own waiting logs, and keeps signals out
                time.sleep(_LOOK_S)
            return str(self._board.get(key).decode())
        except RuntimeError as error:
            what = "the process that leads the training is gone"
            raise WorkerDied(what, cause=_first(error), mend=_AGAIN) from error


_met: list[Meeting] = []  # torch's process group is one a process as well


@contextmanager
def meeting() -> Iterator[Meeting]:
    """Meet the other processes that torchrun started; the leader's end is the end of all.

    Gradients travel by NCCL where each process has a GPU of its own, else by Gloo.

    Raises:
        UsageError: the environment says half of what is needed.
        WorkerDied: the others cannot be reached.

    """
    crew = asked_for()
    if crew.size == 1:
        raise UsageError(
            "there is nobody to meet", mend="start it with torchrun --nproc-per-node 2 -m edgekd ..."
        )
    at, own = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        torch.cuda.set_device(at % torch.cuda.device_count())
    if os.environ["MASTER_ADDR"] in _HERE:  # all of it stays on this machine: listen nowhere else
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    backend = "nccl" if torch.cuda.is_available() and torch.cuda.device_count() >= own else "gloo"
    try:
        board, rank, size = next(rendezvous("env://"))
        dist.init_process_group(
            backend, store=PrefixStore("edgekd", board), rank=rank, world_size=size, timeout=_PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        mend = "start all of them with one torchrun, on machines that reach each other"
        raise WorkerDied(
            "the processes of a training did not meet", cause=str(error)[:200], mend=mend
        ) from error
    found = Meeting(crew, PrefixStore("edgekd-orders", board))
    _met.append(found)
    try:
        yield found
        found.end()
        with suppress(WorkerDied):  # the leader may have ended with an error
            crew.meet()  # none goes while another may still listen to it
    finally:
        _met.remove(found)
        with suppress(RuntimeError):  # the board may be gone, and the others with it
            found.end()
        dist.destroy_process_group()


def summoned(order: str) -> Crew:
    """Tell the others of a training, where there are any, and return those who take part."""
    if not _met:
        return ALONE
    _met[-1].order(order)
    return _met[-1].crew
