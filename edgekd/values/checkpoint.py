"""Trained weights and what they scored."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.values.artifact import Artifact


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights in safetensors, with the validation metric of the torch module."""

    weights: Artifact
    accuracy: float
    epochs: int
    seconds: float  # of training, resumed parts included
    images_per_second: float
    losses: tuple[float, ...]  # mean training loss of each epoch
