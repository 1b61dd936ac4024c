"""Which arithmetic a module runs fastest in here: bf16 or fp32, channels last or first, how many threads."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_ROUNDS = 5
_TRIAL_S = 1.5  # no further round after this
_TRIAL_BATCH = 32  # enough to tell formats apart; threads are tried on the whole batch
_IMAGES = 4  # axes: only those have a choice of layout
_GAIN = 1.1  # less is within the noise of a short trial, and the plain choice keeps runs alike


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Precision of the products, layout of images, threads; weights, losses and sums stay fp32."""

    bf16: bool = False
    channels_last: bool = False
    threads: int = 1

    def placed(self, tensor: Tensor) -> Tensor:
        """Lay images (B, C, H, W) out in memory; what has other axes stays as it is."""
        return tensor.contiguous(memory_format=self._format) if tensor.ndim == _IMAGES else tensor

    def place(self, module: nn.Module) -> nn.Module:
        """Lay the weights out in memory, in place."""
        return module.to(memory_format=self._format)  # type: ignore[call-overload,no-any-return] # torch's stub lacks it

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context that forward passes run in."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Use this many threads, and in the end as many as before."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @property
    def _format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


FORMATS = tuple(
    Arithmetic(bf16=bf16, channels_last=last) for bf16, last in itertools.product((False, True), repeat=2)
)

Attempt = Callable[[nn.Module, Tensor, Arithmetic], Callable[[], None]]


def here() -> torch.device:
    """Return the device to train on: the first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_arithmetic(module: nn.Module, inputs: Tensor, *, training: bool) -> Arithmetic:
    """Time the formats on copies of the module, then how many threads the fastest gains from.

    On a CPU that others use too, one thread can be 20 times as fast as all of them: they wait for each other.

    Args:
        module: is not changed.
        inputs: a batch (B, ...), images (B, C, H, W) or anything else, on the module's device.
        training: time a step with its gradients, or a forward pass.

    """
    attempt = _step if training else _forward
    formats = [one for one in FORMATS if inputs.ndim == _IMAGES or not one.channels_last]
    best = _fastest(module, inputs[:_TRIAL_BATCH], attempt, formats)
    most = torch.get_num_threads()
    counts = sorted({*(1 << power for power in range(most.bit_length())), most})
    if inputs.is_cuda or most == 1:
        return dataclasses.replace(best, threads=most)
    return _fastest(module, inputs, attempt, [dataclasses.replace(best, threads=count) for count in counts])


def _fastest(
    module: nn.Module, inputs: Tensor, attempt: Attempt, choices: Sequence[Arithmetic]
) -> Arithmetic:
    """Run the choices in turns; the first is kept unless another is clearly faster."""
    runs = {choice: attempt(copy.deepcopy(module), inputs, choice) for choice in choices}
    seconds: dict[Arithmetic, list[float]] = {choice: [] for choice in choices}
    begin_s = time.perf_counter()
    for number in range(_ROUNDS + 1):
        for choice, run in runs.items():
            with choice.at_work():
                start_s = time.perf_counter()
                run()
                if inputs.is_cuda:
                    torch.cuda.synchronize()
            if number:  # the first round only warms up
                seconds[choice].append(time.perf_counter() - start_s)
        if number and time.perf_counter() - begin_s > _TRIAL_S:
            break
    middle_s = {choice: statistics.median(found) for choice, found in seconds.items()}
    best = min(choices, key=lambda choice: middle_s[choice])
    return best if middle_s[choices[0]] > _GAIN * middle_s[best] else choices[0]


def _step(module: nn.Module, inputs: Tensor, choice: Arithmetic) -> Callable[[], None]:
    choice.place(module).train()
    placed = choice.placed(inputs)

    def run() -> None:
        with choice.autocast(inputs.device):
            outputs = module(placed)
        outputs.float().square().mean().backward()
        module.zero_grad(set_to_none=True)

    return run


def _forward(module: nn.Module, inputs: Tensor, choice: Arithmetic) -> Callable[[], None]:
    choice.place(module).eval()
    placed = choice.placed(inputs)

    def run() -> None:
        with torch.inference_mode(), choice.autocast(inputs.device):
            module(placed)

    return run
