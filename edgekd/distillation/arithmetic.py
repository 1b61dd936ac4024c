"""Which arithmetic a module runs fastest in here: bf16 or fp32, channels last or first."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROUNDS = 3
_TRIAL_BATCH = 32
_GAIN = 1.1  # less is within the noise of a short trial, and fp32 keeps runs alike


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Precision of the products and layout of the images; weights, losses and sums stay fp32."""

    bf16: bool = False
    channels_last: bool = False

    def placed(self, tensor: Tensor) -> Tensor:
        """Lay images (B, C, H, W) out in memory."""
        return tensor.contiguous(memory_format=self._format)

    def place(self, module: nn.Module) -> nn.Module:
        """Lay the weights out in memory, in place."""
        return module.to(memory_format=self._format)  # type: ignore[call-overload,no-any-return] # torch's stub lacks it

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context that forward passes run in."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)

    @property
    def _format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


CHOICES = tuple(
    Arithmetic(bf16=bf16, channels_last=last) for bf16, last in itertools.product((False, True), repeat=2)
)


def here() -> torch.device:
    """Return the device to train on: the first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_arithmetic(module: nn.Module, images: Tensor, *, training: bool) -> Arithmetic:
    """Time every choice on copies of the module, in turns, and return the fastest.

    Args:
        module: is not changed.
        images: (B, C, H, W), on the module's device.
        training: time a step with its gradients, or a forward pass.

    """
    images = images[:_TRIAL_BATCH]
    attempt = _step if training else _forward
    runs = {choice: attempt(copy.deepcopy(module), images, choice) for choice in CHOICES}
    best_s = dict.fromkeys(runs, float("inf"))
    for number in range(_ROUNDS + 1):
        for choice, run in runs.items():
            start_s = time.perf_counter()
            run()
            if images.is_cuda:
                torch.cuda.synchronize()
            if number:  # the first round only warms up
                best_s[choice] = min(best_s[choice], time.perf_counter() - start_s)
    fastest = min(best_s, key=lambda choice: best_s[choice])
    return fastest if best_s[CHOICES[0]] > _GAIN * best_s[fastest] else CHOICES[0]


def _step(module: nn.Module, images: Tensor, choice: Arithmetic) -> Callable[[], None]:
    choice.place(module).train()
    placed = choice.placed(images)
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def run() -> None:
        with choice.autocast(images.device):
            logits = module(placed)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        module.zero_grad(set_to_none=True)

    return run


def _forward(module: nn.Module, images: Tensor, choice: Arithmetic) -> Callable[[], None]:
    choice.place(module).eval()
    placed = choice.placed(images)

    def run() -> None:
        with torch.inference_mode(), choice.autocast(images.device):
            module(placed)

    return run
