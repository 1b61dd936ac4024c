from __future__ import annotations

import dataclasses

import numpy as np
import torch

from edgekd.distillation.views import batch_view, resized, view_of
from edgekd.tasks import from_arrays
from edgekd.values.job import TaskSection
from tests.distillation.small import digits

ROWS = np.arange(20)


def test_a_view_is_a_function_of_its_number_and_seed():
    task = digits()
    first = batch_view(task, ROWS, view_of(task, 3, seed=1, mixup=0.4), 8)
    again = batch_view(task, ROWS, view_of(task, 3, seed=1, mixup=0.4), 8)
    assert all(map(torch.equal, first, again))
    for number, seed in ((4, 1), (3, 2)):
        other, _ = batch_view(task, ROWS, view_of(task, number, seed=seed, mixup=0.4), 8)
        assert not torch.equal(first[0], other)


def test_a_sample_looks_the_same_in_any_batch():
    task = digits()
    view = view_of(task, 0, seed=0, mixup=0.4)
    images, labels = batch_view(task, ROWS, view, 8)
    shuffled = np.random.default_rng(0).permutation(20)
    some, some_labels = batch_view(task, shuffled[:7], view, 8)
    assert torch.equal(images[shuffled[:7]], some)
    assert torch.equal(labels[shuffled[:7]], some_labels)


def test_what_happens_to_a_sample_does_not_depend_on_what_else_is_switched_on():
    task = digits()
    plain, mixed = (
        view_of(task, 0, seed=0),
        view_of(dataclasses.replace(task, flip=True), 0, seed=0, mixup=0.2),
    )
    assert np.array_equal(plain.down, mixed.down)
    assert np.array_equal(plain.right, mixed.right)
    assert not plain.mirrored.any()
    assert 0.4 < mixed.mirrored.mean() < 0.6


def test_a_view_without_changes_is_the_runner_s_input():
    task = dataclasses.replace(digits(), crop=0)
    images, labels = batch_view(task, ROWS, view_of(task, 0, seed=0), 8)
    np.testing.assert_allclose(images.numpy(), task.inputs(task.train.part(0, 20), 8)[:, 0], atol=1e-6)
    assert np.array_equal(labels.numpy(), task.train.labels[:20])


def test_images_move_by_up_to_the_padding_and_leave_black():
    pixels = np.full((40, 8, 8), 200, np.uint8)
    section = TaskSection(data="flat", crop=2, flip=False, mean=(0.0,), std=(1.0,))
    task = from_arrays(pixels, np.arange(40) % 2, section=section)
    view = view_of(task, 0, seed=0)
    assert set(view.down.tolist()) == {-2, -1, 0, 1, 2}
    images, _ = batch_view(task, np.arange(len(task.train)), view, 8)
    for image, down, right in zip(images[:, 0], view.down, view.right):
        assert int((image > 0).sum()) == (8 - abs(down)) * (8 - abs(right))
        if down > 0:
            assert (image[:down] == 0).all()


def test_flips_mirror_the_columns():
    task = dataclasses.replace(digits(), crop=0, flip=True)
    view = view_of(task, 0, seed=0)
    images, _ = batch_view(task, ROWS, view, 8)
    straight, _ = batch_view(task, ROWS, dataclasses.replace(view, mirrored=np.zeros_like(view.mirrored)), 8)
    for at in ROWS:
        expected = straight[at].flip(2) if view.mirrored[at] else straight[at]
        assert torch.equal(images[at], expected)


def test_mixup_mixes_images_and_labels_in_the_same_shares():
    task = dataclasses.replace(digits(), crop=0)
    view = view_of(task, 0, seed=0, mixup=1.0)
    images, labels = batch_view(task, ROWS, view, 8)
    plain = torch.from_numpy(task.inputs(task.train, 8)[:, 0])
    share = torch.from_numpy(view.shares[ROWS])[:, None, None, None]
    expected = share * plain[ROWS] + (1 - share) * plain[view.partners[ROWS]]
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(20))
    own = task.train.labels[ROWS] != task.train.labels[view.partners[ROWS]]
    found = labels[torch.arange(20), torch.from_numpy(task.train.labels[ROWS])]
    torch.testing.assert_close(found[own], torch.from_numpy(view.shares[ROWS])[own])


def test_scaling_agrees_with_the_runner_to_a_grey_level():
    task = dataclasses.replace(digits(), crop=0)
    images, _ = batch_view(task, ROWS, view_of(task, 0, seed=0), 8)
    for resolution in (6, 13):
        expected = task.inputs(task.train.part(0, 20), resolution)[:, 0]
        gap = np.abs(resized(images, resolution).numpy() - expected).max()
        assert gap <= 1.01 / 255 / task.std[0]
    assert resized(images, 8) is images
