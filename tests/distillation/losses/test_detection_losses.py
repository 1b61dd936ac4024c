"""What a detector learns from boxes, and how its maps are taken apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekd.distillation.cells import Classes, Edges, split_maps
from edgekd.distillation.knowledge import Batch, Shapes
from edgekd.distillation.losses import LOSSES, detection
from edgekd.distillation.losses.detection import assigned, boxes
from edgekd.errors import ConfigError
from edgekd.runner.boxes import BINS, REACH, decode_boxes
from edgekd.tasks.boxes import padded
from tests.tasks import perfect_maps

SIDE, CLASSES = 16, 3
NOTHING = Batch(labels=torch.zeros(0))


def labels(*images: list[tuple[float, ...]]) -> torch.Tensor:
    return torch.from_numpy(padded([np.array(one, np.float32).reshape(-1, 6) for one in images]))


TRUTH = labels(
    [(1, 0.1, 0.2, 0.4, 0.7, 0), (0, 0.5, 0.5, 0.95, 0.9, 0)],
    [(2, 0.3, 0.3, 0.34, 0.33, 0)],
    [],
)


def test_each_box_has_its_own_cell_however_small_it_is():
    cells = assigned(TRUTH, SIDE)
    assert [set(one.unique().tolist()) for one in cells.classes] == [{-1, 0, 1}, {-1, 2}, {-1}]
    assert (cells.classes[1] >= 0).sum() == 1


def test_of_two_boxes_the_smaller_has_the_cell_and_only_middles_are_given_away():
    truth = labels([(0, 0.0, 0.0, 1.0, 1.0, 0), (1, 0.4, 0.4, 0.6, 0.6, 0)])
    cells = assigned(truth, SIDE).classes[0].reshape(SIDE, SIDE)
    assert cells[8, 8] == 1
    assert cells[0, 0] == -1
    assert cells[7:9, 7:9].eq(1).all()


def test_a_difficult_box_is_nobodys():
    truth = labels([(0, 0.1, 0.1, 0.5, 0.5, 1)])
    assert (assigned(truth, SIDE).classes == -1).all()


def test_the_losses_boxes_are_the_runners():
    maps = np.random.default_rng(0).normal(0, 2, (CLASSES + 4 * BINS, SIDE, SIDE)).astype(np.float32)
    post = {"bins": BINS, "reach": REACH, "overlap": 1.0, "most": 2000}
    found = decode_boxes(maps, post, 0.0)
    classes, edges = split_maps(torch.from_numpy(maps)[None])
    middles = detection._grid(SIDE, classes)
    mine = detection._corners(edges[0], middles).clamp(0, 1)
    flat = classes[0].sigmoid().flatten()
    order = flat.argsort(descending=True)
    np.testing.assert_allclose(found.scores, flat[order].numpy(), atol=1e-6)
    by_cell = mine[order // CLASSES].numpy()
    np.testing.assert_allclose(found.corners, by_cell, atol=1e-5)


def test_what_says_the_truth_has_a_loss_near_zero_and_anything_else_more():
    truth = labels([(1, 0.11, 0.2, 0.17, 0.26, 0)])  # small: one cell alone is to find it
    assert (assigned(truth, SIDE).classes >= 0).sum() == 1
    right = torch.from_numpy(perfect_maps.of_boxes(truth.numpy(), CLASSES, SIDE))
    least = boxes(right, truth, NOTHING)
    # What is left is the entropy of an edge between two bins.
    assert least < detection._DFL * np.log(2) + 0.02
    missed = right.clone()
    missed[:, 1] = -9
    moved = labels([(1, 0.15, 0.2, 0.21, 0.26, 0)])
    assert boxes(missed, truth, NOTHING) > least + 1
    assert boxes(right, moved, NOTHING) > least + 0.1


def test_images_without_boxes_teach_that_nothing_is_there():
    maps = torch.zeros(2, CLASSES + 4 * BINS, 8, 8, requires_grad=True)
    loss = boxes(maps, labels([], []), NOTHING)
    loss.backward()
    assert loss.isfinite()
    assert maps.grad is not None
    assert (maps.grad[:, :CLASSES] > 0).all()  # lower scores
    assert (maps.grad[:, CLASSES:] == 0).all()


def test_a_step_down_the_gradient_finds_the_boxes():
    torch.manual_seed(0)
    maps = torch.full((3, CLASSES + 4 * BINS, SIDE, SIDE), -2.0, requires_grad=True)
    optimizer = torch.optim.Adam([maps], lr=0.2)
    for _ in range(150):
        optimizer.zero_grad()
        boxes(maps, TRUTH, NOTHING).backward()
        optimizer.step()
    post = {"bins": BINS, "reach": REACH, "overlap": 0.5, "most": 10}
    found = [decode_boxes(one, post, 0.5) for one in maps.detach().numpy()]
    assert [sorted(one.labels.tolist()) for one in found] == [[0, 1], [2], []]
    np.testing.assert_allclose(
        found[1].corners[0], [0.3, 0.3, 0.34, 0.33], atol=0.015
    )  # its cell ends above 0.33


def shapes(*, student: tuple[int, ...], teacher: tuple[int, ...] | None = None) -> Shapes:
    return Shapes(
        name="ld",
        student=(torch.Size(student),),
        teacher=(torch.Size(teacher or student),),
        samples=4,
        classes=CLASSES,
    )


def test_cells_are_chosen_where_something_is_seen():
    shape = (CLASSES + 4 * BINS, 8, 8)
    student, teacher = torch.zeros(1, *shape) - 5, torch.zeros(1, *shape) - 5
    teacher[0, 1, 2, 3] = 4.0
    student[0, 0, 7, 7] = 3.0
    teacher[0, CLASSES:, 2, 3] = torch.arange(4.0 * BINS)
    learnt, given = Classes(shapes(student=shape))((student,), (teacher,), NOTHING)
    assert learnt[0].shape == given[0].shape == (4, CLASSES)
    assert given[0].max() == 4
    assert learnt[0].max() == 3  # the student's own mistake is seen as well
    _, edges = Edges(shapes(student=shape))((student,), (teacher,), NOTHING)
    assert edges[0].shape == (4, 4, BINS)
    np.testing.assert_array_equal(edges[0][0].numpy(), np.arange(4.0 * BINS).reshape(4, BINS))


def test_maps_of_different_shapes_cannot_be_compared():
    with pytest.raises(ConfigError, match="one shape"):
        Classes(shapes(student=(35, 8, 8), teacher=(35, 4, 4)))
    with pytest.raises(ConfigError, match="one shape"):
        Edges(shapes(student=(35,)))


@pytest.mark.parametrize("name", ["ld", "crosskd_classes", "crosskd_boxes"])
def test_a_student_that_says_what_its_teacher_says_has_no_gradient(name: str):
    method = LOSSES[name]
    maps = torch.randn(
        2, CLASSES + 4 * BINS, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    student = maps.clone().requires_grad_()
    learnt, given = method.adapter(shapes(student=maps.shape[1:]))((student,), (maps,), NOTHING)
    method.loss(learnt[0], given[0], NOTHING).backward()
    assert student.grad.abs().max() < 1e-9
