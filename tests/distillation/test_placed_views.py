"""Labels that lie in the image move with it."""

from __future__ import annotations

import numpy as np

from edgekd.distillation.views import batch_view, view_of
from edgekd.tasks.detection import from_boxes
from edgekd.tasks.masks import IGNORED, Masked
from edgekd.tasks.scenes import digit_scenes
from edgekd.tasks.segmentation import from_masks
from edgekd.values.job import TaskSection


def test_masks_stay_on_their_pixels():
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 3, (12, 32, 32), dtype=np.uint8)
    found = Masked(
        images=80 + 50 * masks[..., None], masks=masks, classes=("a", "b", "c"), roles=np.arange(12) % 3
    )
    section = TaskSection(data="drawn", kind="segmentation", crop=5, mean=(0.0,), std=(1.0,))
    task = from_masks(section, found)
    view = view_of(task, 1, seed=3)
    assert view.mirrored.any()
    assert view.down.any()
    inputs, labels = batch_view(task, np.arange(len(task.train)), view, 32)
    shown = np.rint(inputs.numpy()[:, 0] * 255)
    expected = np.where(labels.numpy() == IGNORED, 0, 80 + 50.0 * labels.numpy())
    np.testing.assert_array_equal(shown, expected)


def test_boxes_stay_around_their_digits():
    scenes = digit_scenes(most=4, sides=(14, 20), counts=(40, 4, 4))
    section = TaskSection(data="scenes", kind="detection", crop=6, mean=(0.0,), std=(1.0,))
    task = from_boxes(
        section, scenes.masks[..., None] * np.uint8(20), scenes
    )  # digits alone, each its own grey
    view = view_of(task, 1, seed=3)
    inputs, labels = batch_view(task, np.arange(len(task.train)), view, 64)
    checked = 0
    for image, rows in zip(inputs.numpy()[:, 0], labels.numpy()):
        for label, *corners, _ in rows[rows[:, 0] >= 0]:
            left, top, right, bottom = (round(float(at) * 64) for at in corners)
            if min(left, top) == 0 or max(right, bottom) == 64:
                continue  # cut: what is left need not reach the new edges
            digit = np.rint(image[top:bottom, left:right] * 255) == 20 * (label + 1)
            assert digit.any(axis=0)[[0, -1]].all()
            assert digit.any(axis=1)[[0, -1]].all()
            checked += 1
    assert checked > 50
