"""Exactly what turns a sample into a model's input tensor, as it lies in `preprocess.json`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resize, scale to [0, 1], normalise, channels first: uint8 (N, H, W, C) to float32 (N, C, height, width)."""

    kind: str = "image"
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
class Spectrogram:
    """Logarithms of mel energies, normalised: int16 (N, samples) to float32 (N, 1, bins, frames)."""

    kind: str = "spectrogram"
    sample_rate: int  # Hz
    samples: int  # of a clip
    bins: int  # mel bands
    frames: int
    window: int  # samples that a frame is made of
    hop: int  # samples between the starts of frames
    floor: float  # energy that is added before the logarithm
    mean: float  # of the logarithms
    std: float
    schema_version: int = 1


@dataclass(frozen=True, kw_only=True)
class Features:
    """Rows of numbers, standardised: float32 (N, F) to float32 (N, F)."""

    kind: str = "features"
    names: tuple[str, ...]  # of the columns
    mean: tuple[float, ...]
    std: tuple[float, ...]
    schema_version: int = 1


@dataclass(frozen=True, kw_only=True)
class Text:
    """Letters as their places in an alphabet: int64; a letter that is not in it is refused."""

    kind: str = "text"
    alphabet: str
    schema_version: int = 1


Recipe = Preprocess | Spectrogram | Features | Text


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """What is taken from pixels in [0, 1], and what they are then divided by: one value, or one a channel."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
