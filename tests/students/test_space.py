"""Spaces of students: large, closed under steps, the same for the same seed."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd import students
from edgekd.errors import ConfigError
from edgekd.values.student import StudentSpec

resolutions = st.sampled_from([8, 10, 16, 28, 32, 64, 96, 224])
seeds = st.integers(0, 2**32)


def chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - no secret depends on it


def dimensions(spec: StudentSpec) -> list[object]:
    stages = [value for stage in spec.stages for value in dataclasses.astuple(stage)]
    return [spec.family, spec.resolution, spec.stem, *stages]


@given(resolution=st.integers(8, 512), family=st.sampled_from(students.IMAGES))
def test_every_space_holds_more_than_a_million_students(resolution: int, family: str):
    space = students.space_for(resolution=resolution, channels=3, classes=10, families=(family,))
    assert len(space) >= 1_000_000
    assert max(space.resolutions) == resolution
    assert min(space.resolutions) >= 8


@settings(deadline=None)
@given(resolution=resolutions, seed=seeds)
def test_a_sample_is_in_its_space_and_fixed_by_the_seed(resolution: int, seed: int):
    space = students.space_for(resolution=resolution, channels=3, classes=10)
    spec = students.sample(space, chance(seed))
    assert students.contains(space, spec)
    assert students.sample(space, chance(seed)) == spec


@settings(deadline=None)
@given(resolution=resolutions, seed=seeds)
def test_a_neighbour_differs_in_one_dimension_and_stays_in_the_space(resolution: int, seed: int):
    space = students.space_for(resolution=resolution, channels=3, classes=10)
    rng = chance(seed)
    spec = students.sample(space, rng)
    neighbour = students.neighbours(spec, space, rng)
    assert students.contains(space, neighbour)
    changed = [a for a, b in zip(dimensions(spec), dimensions(neighbour)) if a != b]
    assert len(changed) == 1


def test_steps_reach_every_dimension():
    space = students.space_for(resolution=32, channels=3, classes=10)
    rng = chance(0)
    start = students.sample(space, rng)
    changed = set()
    for _ in range(600):
        other = dimensions(students.neighbours(start, space, rng))
        changed |= {at for at, (a, b) in enumerate(zip(dimensions(start), other)) if a != b}
    assert changed == set(range(1, len(dimensions(start))))


def test_a_space_of_one_student_has_no_neighbours_to_give():
    space = students.space_for(resolution=8, channels=1, classes=10, families=("residual",))
    one = dataclasses.replace(
        space, stems=(8,), widths=((8,),), depths=(1,), kernels=(3,), expansions={"residual": (1.0,)}
    )
    spec = students.sample(one, chance(0))
    with pytest.raises(ConfigError, match="no neighbour"):
        students.neighbours(spec, one, chance(0))


def test_a_misspelt_family_suggests_the_known_one():
    with pytest.raises(ConfigError, match="did you mean 'inverted'"):
        students.space_for(resolution=32, channels=3, classes=10, families=("invertd",))


def test_images_too_small_for_a_student_are_refused():
    with pytest.raises(ConfigError, match="8 x 8"):
        students.space_for(resolution=7, channels=1, classes=10)


def test_a_space_without_families_is_refused():
    with pytest.raises(ConfigError, match=r"search\.families"):
        students.space_for(resolution=8, channels=1, classes=10, families=())


def test_families_that_share_no_dimensions_are_not_searched_together():
    with pytest.raises(ConfigError, match="'residual' and 'mlp' cannot be searched together"):
        students.space_for(resolution=8, channels=1, classes=10, families=("residual", "mlp"))


def test_families_that_are_searched_together_have_the_same_columns():
    names = students.feature_names("inverted")
    assert names == students.feature_names("residual")
    assert "family_mlp" not in names
    assert "family_mlp" in students.feature_names("mlp")
