"""Weights and training states in safetensors: whole or absent on disk, and nothing in them can run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from edgekd.errors import IntegrityError
from edgekd.store import replacing
from edgekd.values.artifact import Artifact

_NOTE = "edgekd"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], note: str = "") -> Artifact:
    """Write tensors and a note beside them.

    Raises:
        ResourcesExhausted: the disk is full; what was at `path` is still there.

    """
    # Tied weights share memory, which the format refuses: each name gets its own copy.
    own = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    content = save(own, metadata={_NOTE: note})
    with replacing(path) as partial:
        partial.write_bytes(content)
    return Artifact.of(path)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read tensors and the note.

    Raises:
        IntegrityError: the file is not safetensors, or is damaged.

    """
    try:
        with safe_open(path, framework="pt") as file:
            note = (file.metadata() or {}).get(_NOTE, "")
            return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise IntegrityError(
            f"{path} is not a safetensors file that can be read", cause=str(error)[:200]
        ) from error


def save_module(path: Path, module: nn.Module) -> Artifact:
    """Write a module's weights and buffers."""
    return save_tensors(path, module.state_dict())


def load_module(module: nn.Module, weights: Artifact) -> nn.Module:
    """Put saved weights into a module of the same architecture, and return it.

    Raises:
        IntegrityError: the file changed, or its tensors are not the module's.

    """
    tensors, _ = load_tensors(weights.verified())
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise IntegrityError(
            f"{weights.path} does not hold the weights of {type(module).__name__}", cause=str(error)[:300]
        ) from error
    return module


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name an optimizer's momenta: `0.momentum_buffer`, `0.exp_avg`, ..."""
    return {
        f"{number}.{name}": value
        for number, slots in optimizer.state_dict()["state"].items()
        for name, value in slots.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put saved momenta back, in the layout of their weights: the fused step takes both as flat memory."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        weight = weights[int(number)]
        placed = torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value.clone()
        slots.setdefault(int(number), {})[name] = placed.detach()
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
