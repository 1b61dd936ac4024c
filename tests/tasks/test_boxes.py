from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.runner.boxes import BINS, REACH, Boxes, decode_boxes, overlaps, suppress_doubles
from edgekd.tasks import boxes
from tests.tasks import perfect_maps

POST = {"bins": BINS, "reach": REACH, "overlap": 0.5, "most": 10, "least": 0.3}


def rows(*found: tuple[float, ...]) -> np.ndarray:
    """Return the labels of one image; difficult is 0 where it is left out."""
    full = [(*one, 0.0)[:6] for one in found]
    return boxes.padded([np.array(full, np.float32).reshape(-1, 6)])


def boxes_of(*found: tuple[float, ...]) -> Boxes:
    """Return boxes of (class, score, corners...)."""
    table = np.array(found, np.float32).reshape(-1, 6)
    return Boxes(table[:, 2:], table[:, 0].astype(np.int64), table[:, 1])


def test_maps_that_say_where_boxes_are_are_read_as_these_boxes():
    truth = rows((1, 0.1, 0.2, 0.4, 0.7), (0, 0.5, 0.5, 0.95, 0.9), (1, 0.62, 0.02, 0.7, 0.11))
    maps = perfect_maps.of_boxes(truth, classes=2, side=16)[0]
    found = decode_boxes(maps, POST, 0.3)
    assert sorted(found.labels.tolist()) == [0, 1, 1]
    for label, *corners, _ in truth[0]:
        mine = found.corners[found.labels == label]
        assert np.abs(mine - np.array(corners)).max(axis=1).min() < 1e-3


def test_maps_that_are_not_finite_hold_no_boxes():
    maps = perfect_maps.of_boxes(rows((0, 0.1, 0.1, 0.5, 0.5)), classes=1, side=8)[0]
    assert len(decode_boxes(maps, POST, 0.3).scores) == 1
    maps[5, 0, 0] = np.inf
    assert len(decode_boxes(maps, POST, 0.3).scores) == 0


def test_boxes_come_best_first_at_most_so_many_and_inside_the_image():
    maps = np.random.default_rng(0).normal(0, 3, (2 + 4 * BINS, 12, 12)).astype(np.float32)
    found = decode_boxes(maps, {**POST, "overlap": 0.9}, 0.1)
    assert len(found.scores) == POST["most"]
    assert (np.diff(found.scores) <= 0).all()
    assert found.corners.min() >= 0
    assert found.corners.max() <= 1


def test_of_two_boxes_of_a_class_that_overlap_the_better_one_stays():
    found = boxes_of(
        (0, 0.9, 0.1, 0.1, 0.5, 0.5),
        (0, 0.8, 0.12, 0.1, 0.5, 0.5),  # the first again
        (1, 0.7, 0.1, 0.1, 0.5, 0.5),  # another class
        (0, 0.6, 0.4, 0.4, 0.9, 0.9),  # touches the first
    )
    assert suppress_doubles(found, 0.5).tolist() == [0, 2, 3]


def test_a_box_that_is_dropped_drops_no_other():
    found = boxes_of(
        (0, 0.9, 0.0, 0.0, 0.30, 0.3), (0, 0.8, 0.10, 0.0, 0.40, 0.3), (0, 0.7, 0.2, 0.0, 0.5, 0.3)
    )
    assert suppress_doubles(found, 0.4).tolist() == [0, 2]


def test_overlap_is_intersection_over_union():
    first = np.array([[0, 0, 0.2, 0.2], [0.5, 0.5, 0.5, 0.9]], np.float32)
    second = np.array([[0.1, 0, 0.3, 0.2], [0.8, 0.8, 0.9, 0.9]], np.float32)
    np.testing.assert_allclose(overlaps(first, second), [[1 / 3, 0], [0, 0]], atol=1e-6)


def test_average_precision_is_the_area_under_the_whole_curve():
    # Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: the envelope is 1, 2/3, 2/3.
    assert boxes.average_precision(np.array([True, False, True]), 2) == pytest.approx((1 + 2 / 3) / 2)
    assert boxes.average_precision(np.array([False, False]), 2) == 0
    assert boxes.average_precision(np.zeros(0, np.bool_), 3) == 0


def test_a_box_found_twice_is_right_once():
    truth = rows((0, 0.1, 0.1, 0.5, 0.5))
    once = boxes_of((0, 0.9, 0.1, 0.1, 0.5, 0.5))
    wrong_first = boxes_of((0, 0.95, 0.6, 0.6, 0.9, 0.9), (0, 0.9, 0.1, 0.1, 0.5, 0.5))
    twice = boxes_of((0, 0.9, 0.1, 0.1, 0.5, 0.5), (0, 0.8, 0.1, 0.1, 0.5, 0.48))
    assert boxes.mean_average_precision([once], truth, 1) == 1
    assert boxes.mean_average_precision([twice], truth, 1) == 1  # the double comes after full recall
    assert boxes.mean_average_precision([wrong_first], truth, 1) == 0.5
    both = rows((0, 0.1, 0.1, 0.5, 0.5), (0, 0.6, 0.6, 0.9, 0.9))
    late = boxes_of(*[(0, *one) for one in ((0.9, 0.1, 0.1, 0.5, 0.5), (0.8, 0.1, 0.1, 0.5, 0.48))])
    assert boxes.mean_average_precision([late], both, 1) == 0.5


def test_a_difficult_box_counts_neither_way():
    truth = rows((0, 0.1, 0.1, 0.5, 0.5), (0, 0.6, 0.6, 0.9, 0.9, 1))
    found = boxes_of((0, 0.9, 0.6, 0.6, 0.9, 0.9), (0, 0.8, 0.1, 0.1, 0.5, 0.5))
    assert boxes.mean_average_precision([found], truth, 1) == 1
    only = boxes_of((0, 0.8, 0.1, 0.1, 0.5, 0.5))
    assert boxes.mean_average_precision([only], truth, 1) == 1


def test_a_box_of_another_class_or_with_half_the_overlap_is_wrong():
    truth = rows((0, 0.1, 0.1, 0.5, 0.5), (1, 0.6, 0.6, 0.8, 0.8))
    other = boxes_of((1, 0.9, 0.1, 0.1, 0.5, 0.5))
    loose = boxes_of((0, 0.9, 0.1, 0.1, 0.28, 0.5))
    assert boxes.mean_average_precision([other], truth, 2) == 0
    assert boxes.mean_average_precision([loose], truth, 2) == 0


def test_the_mean_is_over_the_classes_that_are_there():
    truth = rows((0, 0.1, 0.1, 0.5, 0.5))
    found = boxes_of((0, 0.9, 0.1, 0.1, 0.5, 0.5), (1, 0.9, 0.6, 0.6, 0.9, 0.9))
    assert boxes.mean_average_precision([found], truth, 3) == 1
    assert boxes.mean_average_precision([boxes_of()], rows(), 3) == 0


@settings(max_examples=40, deadline=None)
@given(
    left=st.integers(0, 20),
    top=st.integers(0, 20),
    width=st.integers(10, 12),
    height=st.integers(10, 12),
    down=st.integers(-3, 3),
    right=st.integers(-3, 3),
    mirrored=st.booleans(),
)
def test_a_box_moves_as_its_image_does(  # noqa: PLR0917 - hypothesis gives them
    left: int,
    top: int,
    width: int,
    height: int,
    down: int,
    right: int,
    mirrored: bool,  # noqa: FBT001
):
    side = 32
    image = np.zeros((side, side), np.uint8)
    image[top : top + height, left : left + width] = 1
    moved = np.zeros_like(image)
    moved[max(0, down) : side + min(0, down), max(0, right) : side + min(0, right)] = image[
        max(0, -down) : side - max(0, down), max(0, -right) : side - max(0, right)
    ]
    moved = moved[:, ::-1] if mirrored else moved
    corners = np.array([left, top, left + width, top + height], np.float32) / side
    label = boxes.padded([np.array([[2, *corners, 0]], np.float32)])
    found = boxes.moved(label, np.array([down / side]), np.array([right / side]), np.array([mirrored]))[0, 0]
    down_there, across_there = np.flatnonzero(moved.any(axis=1)), np.flatnonzero(moved.any(axis=0))
    seen = across_there[0], down_there[0], across_there[-1] + 1, down_there[-1] + 1
    assert found[0] == 2
    np.testing.assert_allclose(found[1:5] * side, seen, atol=1e-4)


def test_a_box_that_leaves_the_image_is_no_object_any_more():
    label = rows((0, 0.0, 0.1, 0.2, 0.3), (1, 0.5, 0.5, 0.7, 0.7))
    found = boxes.moved(label, np.array([0.0]), np.array([-0.15]), np.array([False]))[0]
    assert found[:, 0].tolist() == [boxes.NONE, 1]
