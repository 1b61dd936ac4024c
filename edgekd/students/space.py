"""The students that may be proposed: draw one, or step from one to its neighbours."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import TypeVar

from edgekd.errors import ConfigError
from edgekd.students.shapes import CHANNEL_STEP
from edgekd.values.student import Space, StageSpec, StudentSpec

T = TypeVar("T", bound=float)  # mypy counts int as float

LEAST_RESOLUTION = 8
_LARGE_RESOLUTION = 64  # above it a network has four stages and halves from the stem on
_STEMS = (8, 16, 24, 32)
_DEPTHS = (1, 2, 3, 4)
_KERNELS = (3, 5)


def image_space(resolution: int, channels: int, outputs: int, families: tuple[str, ...]) -> Space:
    """Return the students for images of a side: widths double from stage to stage.

    Raises:
        ConfigError: the images are smaller than 8 x 8.

    """
    if resolution < LEAST_RESOLUTION:
        raise ConfigError(
            f"students take images of {LEAST_RESOLUTION} x {LEAST_RESOLUTION} pixels or more",
            cause=f"the resolution is {resolution}",
            mend=f"set task.resolution to {LEAST_RESOLUTION} or more",
        )
    stages = 4 if resolution > _LARGE_RESOLUTION else 3
    smaller = {resolution * eighths // 8 // 4 * 4 for eighths in (6, 7)}
    return Space(
        families=families,
        channels=channels,
        classes=outputs,
        resolutions=tuple(sorted({resolution, *(side for side in smaller if side >= LEAST_RESOLUTION)})),
        stems=_STEMS,
        widths=tuple(tuple(CHANNEL_STEP * at * 2**stage for at in range(1, 9)) for stage in range(stages)),
        depths=_DEPTHS,
        kernels=_KERNELS,
        expansions={},  # each family's own, filled in by `space_for`
    )


def sample(space: Space, rng: random.Random) -> StudentSpec:
    """Draw a student, each dimension evenly."""
    family = rng.choice(space.families)
    stages = tuple(
        StageSpec(
            width=rng.choice(widths),
            depth=rng.choice(space.depths),
            kernel=rng.choice(space.kernels),
            expansion=rng.choice(space.expansions[family]),
        )
        for widths in space.widths
    )
    resolution, stem = rng.choice(space.resolutions), rng.choice(space.stems)
    return StudentSpec(family=family, resolution=resolution, stem=stem, stages=stages)


def smallest(space: Space, family: str) -> StudentSpec:
    """Return the cheapest student of a family: uniform draws all but never come near it."""
    stages = tuple(
        StageSpec(
            width=min(widths),
            depth=min(space.depths),
            kernel=min(space.kernels),
            expansion=min(space.expansions[family]),
        )
        for widths in space.widths
    )
    return StudentSpec(family=family, resolution=min(space.resolutions), stem=min(space.stems), stages=stages)


def draw(space: Space, count: int, rng: random.Random) -> list[StudentSpec]:
    """Draw students of every size: half evenly, half from a narrowed space that reaches down to the smallest."""
    evenly = [sample(space, rng) for _ in range(count - count // 2)]
    small = [sample(_narrowed(space, rng.choice((1, 2, 3))), rng) for _ in range(count // 2)]
    return [*(smallest(space, family) for family in space.families), *evenly, *small]


def _narrowed(space: Space, choices: int) -> Space:
    return dataclasses.replace(
        space,
        widths=tuple(tuple(sorted(widths)[: choices + 1]) for widths in space.widths),
        depths=tuple(sorted(space.depths)[:choices]),
        expansions={family: tuple(sorted(found)[:choices]) for family, found in space.expansions.items()},
    )


def contains(space: Space, spec: StudentSpec) -> bool:
    """Say whether the space holds this student."""
    return (
        spec.family in space.families
        and spec.resolution in space.resolutions
        and spec.stem in space.stems
        and len(spec.stages) == len(space.widths)
        and all(
            stage.width in widths
            and stage.depth in space.depths
            and stage.kernel in space.kernels
            and stage.expansion in space.expansions[spec.family]
            for stage, widths in zip(spec.stages, space.widths)
        )
    )


def neighbours(spec: StudentSpec, space: Space, rng: random.Random) -> StudentSpec:
    """Draw one neighbour: a student whose one elastic dimension is the next smaller or larger choice.

    Raises:
        ConfigError: the space holds no other student of this family.

    """
    around = _around(spec, space)
    if not around:
        raise ConfigError(f"the space holds no neighbour of {spec}", mend="allow more than one choice")
    return rng.choice(rng.choice(around))


def _around(spec: StudentSpec, space: Space) -> list[list[StudentSpec]]:
    """List the neighbours by dimension, so that each dimension is equally likely to be stepped."""
    replace = dataclasses.replace
    found = [
        [replace(spec, resolution=side) for side in _steps(spec.resolution, space.resolutions)],
        [replace(spec, stem=stem) for stem in _steps(spec.stem, space.stems)],
    ]
    for at, (stage, widths) in enumerate(zip(spec.stages, space.widths)):
        changed = (
            [replace(stage, width=width) for width in _steps(stage.width, widths)],
            [replace(stage, depth=depth) for depth in _steps(stage.depth, space.depths)],
            [replace(stage, kernel=kernel) for kernel in _steps(stage.kernel, space.kernels)],
            [replace(stage, expansion=e) for e in _steps(stage.expansion, space.expansions[spec.family])],
        )
        before, after = spec.stages[:at], spec.stages[at + 1 :]
        found += [[replace(spec, stages=(*before, one, *after)) for one in ones] for ones in changed]
    return [students for students in found if students]


def _steps(value: T, choices: Sequence[T]) -> list[T]:
    smaller = [choice for choice in choices if choice < value]
    larger = [choice for choice in choices if choice > value]
    return [*([max(smaller)] if smaller else []), *([min(larger)] if larger else [])]
