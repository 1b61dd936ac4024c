"""Trained weights and what they scored, and what a teacher said of one view of the training images."""

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


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Teacher outputs for one augmented view of the training images; every student learns from the same."""

    outputs: dict[str, Artifact]  # by tap of the teacher ("logits"): float16 .npy, a row a training image
    view: int  # with `seed` and `mixup`, what `distillation.views` makes the same images of again
    seed: int
    mixup: float
    samples: int

    @property
    def bytes_a_sample(self) -> float:
        """Size on disk for one image and view."""
        return sum(artifact.size_bytes for artifact in self.outputs.values()) / self.samples
