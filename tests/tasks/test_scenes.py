from __future__ import annotations

import numpy as np
import pytest

from edgekd.tasks.scenes import SIDE, digit_scenes

FEW = (20, 6, 6)


def test_boxes_hold_exactly_the_pixels_of_their_digit():
    scenes = digit_scenes(most=4, sides=(14, 26), counts=FEW)
    for boxes, mask in zip(scenes.boxes, scenes.masks):
        inside = np.zeros((SIDE, SIDE), np.bool_)
        for label, *corners, difficult in boxes:
            left, top, right, bottom = (round(float(at) * SIDE) for at in corners)
            found = mask[top:bottom, left:right] == 1 + label
            assert found.any(axis=0)[[0, -1]].all()
            assert found.any(axis=1)[[0, -1]].all()
            inside[top:bottom, left:right] = True
            assert difficult == 0
        assert (mask[~inside] == 0).all()


def test_scenes_are_the_same_each_time_and_divided():
    first, second = (digit_scenes(most=3, sides=(22, 36), counts=FEW) for _ in range(2))
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.masks, second.masks)
    assert np.bincount(first.roles).tolist() == list(FEW)
    assert all(1 <= len(boxes) <= 3 for boxes in first.boxes)


def test_other_counts_do_not_mix_the_digits_of_the_parts(monkeypatch: pytest.MonkeyPatch):
    seen: list[set[bytes]] = []

    def remembered(glyphs: np.ndarray, *_: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        seen.append({glyph.tobytes() for glyph in glyphs})
        return (
            np.zeros((SIDE, SIDE), np.uint8),
            np.zeros((0, 6), np.float32),
            np.zeros((SIDE, SIDE), np.uint8),
        )

    monkeypatch.setattr("edgekd.tasks.scenes._scene", remembered)
    digit_scenes(most=1, sides=(14, 14), counts=(1, 1, 1))
    train, validation, test = seen
    assert not train & test
    assert not validation & test
    assert not train & validation
