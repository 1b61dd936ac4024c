"""A latency that may travel: what was timed, where, and how, without the samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgekd.errors import ConfigError
from edgekd.values.model import Precision
from edgekd.values.student import StudentSpec

_LARGEST = {"stages": 32, "depth": 256, "width": 1 << 16, "resolution": 1 << 13, "classes": 1 << 20}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The median of one student on one device, which another device's predictor may learn from.

    It is a prior and never a result: nothing reports it as a latency of the device at hand. It may come from a
    stranger's file, so its sizes are bounded: layers are counted from them.

    Raises:
        ConfigError: the median is not above 0, or a size is out of bounds.

    """

    device: str  # fingerprint of the machine and its software
    processor: str  # for people
    runtime: str
    version: str  # of the runtime; empty where it is not known
    precision: Precision
    spec: StudentSpec
    channels: int
    classes: int
    p50_ms: float
    samples: int  # behind the median
    protocol: str  # fingerprint of how they were taken

    def __post_init__(self) -> None:
        if not (self.p50_ms > 0 and math.isfinite(self.p50_ms) and self.samples > 0):
            raise ConfigError(
                "a median must be above 0, of one sample or more", cause=f"it is {self.p50_ms} ms"
            )
        widths = (self.spec.stem, self.channels, *(stage.width for stage in self.spec.stages))
        sizes = {
            "stages": (len(self.spec.stages),),
            "depth": tuple(stage.depth for stage in self.spec.stages),
            "width": widths,
            "resolution": (self.spec.resolution,),
            "classes": (self.classes,),
        }
        for name, found in sizes.items():
            if not all(1 <= size <= _LARGEST[name] for size in found):
                cause = f"{name} {max(found, default=0)}, {_LARGEST[name]} is the most"
                raise ConfigError("a measurement is of no student that could be built", cause=cause)
