"""What names a student: a family and its elastic dimensions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One run of blocks at one scale."""

    width: int  # output channels
    depth: int  # blocks, >= 1
    kernel: int  # 3 or 5; 1 where nothing is convolved
    expansion: float  # inner channels of a block / its output channels


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """A network of a family; two equal specs have the same shape."""

    family: str
    resolution: int  # side of the square input in pixels; letters of a text, 1 for a row of features
    stem: int  # channels after the first layer
    stages: tuple[StageSpec, ...]

    def __str__(self) -> str:
        stages = " ".join(f"{s.width}x{s.depth}k{s.kernel}e{s.expansion:g}" for s in self.stages)
        return f"{self.family} @{self.resolution} stem {self.stem}, {stages}"


@dataclass(frozen=True, kw_only=True)
class Space:
    """The students that may be proposed: every combination of the choices."""

    families: tuple[str, ...]
    channels: int  # of the input
    classes: int  # width of the students' end, whatever it stands for
    resolutions: tuple[int, ...]
    stems: tuple[int, ...]
    widths: tuple[tuple[int, ...], ...]  # one tuple of choices a stage
    depths: tuple[int, ...]
    kernels: tuple[int, ...]
    expansions: dict[str, tuple[float, ...]]  # by family

    def __len__(self) -> int:
        total = 0
        for family in self.families:
            a_stage = len(self.depths) * len(self.kernels) * len(self.expansions[family])
            count = len(self.resolutions) * len(self.stems)
            for widths in self.widths:
                count *= len(widths) * a_stage
            total += count
        return total
