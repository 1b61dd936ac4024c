"""Exactly what turns an image into a model's input tensor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resize, scale to [0, 1], normalise, channels first; `edgekd/runner.py` executes it everywhere."""

    height: int
    width: int
    mean: tuple[float, ...]  # one value a channel; one channel means grey
    std: tuple[float, ...]
    resize: str = "bilinear"  # Pillow's, with its antialiasing; skipped where the size is right already
    schema_version: int = 1

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return len(self.mean)


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """What is taken from pixels in [0, 1], and what they are then divided by: one value, or one a channel."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
