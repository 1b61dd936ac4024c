from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from edgekd import tasks
from edgekd.errors import ConfigError, DataError
from edgekd.runner.answers_segmentation import painted
from edgekd.tasks.masks import IGNORED
from edgekd.tasks.segmentation import Segmentation, mean_iou
from edgekd.values.job import TaskSection
from tests.tasks import perfect_maps


def load(root: Path, **settings: object) -> Segmentation:
    section = TaskSection(data=str(root), kind="segmentation", **settings)
    return tasks.load(section, beside=root.parent, cache=root.parent / "cache")


def draw(seed: int, side: int = 32, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (side // 4, side // 4), dtype=np.uint8)
    mask = coarse.repeat(4, axis=0).repeat(4, axis=1)
    return rng.integers(0, 256, (side, side, 3), dtype=np.uint8), mask


def folder(root: Path, count: int = 10, part: str = ".", mode: str = "L") -> Path:
    for name in ("images", "masks"):
        (root / part / name).mkdir(parents=True, exist_ok=True)
    for at in range(count):
        image, mask = draw(at)
        Image.fromarray(image).save(root / part / "images" / f"{at}.jpg")
        Image.fromarray(mask).convert(mode).save(root / part / "masks" / f"{at}.png")
    return root


@pytest.mark.parametrize(("height", "width"), [(64, 64), (37, 91), (9, 7), (16, 16)])
def test_maps_are_enlarged_as_the_loss_enlarges_them(height: int, width: int):
    maps = np.random.default_rng(0).normal(size=(5, 16, 12)).astype(np.float32)
    theirs = F.interpolate(
        torch.from_numpy(maps)[None], size=(height, width), mode="bilinear", align_corners=False
    )
    np.testing.assert_array_equal(painted(maps, height, width), theirs[0].argmax(dim=0).numpy())


def test_a_large_image_is_painted_in_strips(monkeypatch: pytest.MonkeyPatch):
    maps = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    whole = painted(maps, 40, 50)
    monkeypatch.setattr("edgekd.runner.answers_segmentation._STRIP_ELEMENTS", 3 * 50 * 7)
    np.testing.assert_array_equal(painted(maps, 40, 50), whole)


def test_mean_iou_is_over_the_classes_that_are_in_the_truth():
    # Class 0: 3 right of 4 true and 4 given; class 1: 2 right of 3 true and 3 given; class 2 is nowhere.
    counts = np.array([[3, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0]])
    assert mean_iou(counts) == pytest.approx((3 / 5 + 2 / 4) / 2)
    given_only = np.array([[3, 0, 1], [0, 0, 0]])[:, [0, 1, 2]]
    assert mean_iou(given_only) == pytest.approx(3 / 4)
    assert mean_iou(np.zeros((2, 3), np.int64)) == 0


def test_masks_are_scored_and_what_is_unknown_is_left_out(tmp_path: Path):
    task = load(folder(tmp_path / "data"))
    labels = np.array(task.test.labels)
    right = perfect_maps.of_masks(labels, 3)
    # Squares of one cell blur into each other between the cells' middles, but their middles stay.
    assert 0.5 < task.score(right, labels) < 1
    flat = np.zeros((1, 32, 32), np.uint8)
    flat[:, :, 16:] = 1
    given = np.zeros((1, 3, 8, 8), np.float32)
    given[:, 0] = 1
    assert task.score(given, flat) == pytest.approx(
        0.25
    )  # all of class 0 and half of what is given; none of 1
    flat[:, :, 16:] = IGNORED
    assert task.score(given, flat) == 1
    given[0, 2, 0, 0] = np.nan
    assert task.score(given, flat) == 0


def test_a_mask_moves_as_its_image_does(tmp_path: Path):
    task = load(folder(tmp_path / "data"))
    masks = np.stack([draw(at)[1] for at in range(4)])
    down, right = np.array([0, 3, -2, 5]), np.array([1, 0, -4, -5])
    moved = task.moved(masks, down, right, np.array([False, True, False, True]))
    assert (moved[0][:, 1:] == masks[0][:, :-1]).all()
    assert (moved[0][:, 0] == IGNORED).all()
    assert (moved[1][:, ::-1][3:] == masks[1][:-3]).all()
    assert (moved[2][:-2, :-4] == masks[2][2:, 4:]).all()
    assert (moved[3] == IGNORED).sum() == 32 * 32 - 27 * 27


def test_folders_are_read_with_their_names_and_their_split(tmp_path: Path):
    root = tmp_path / "data"
    folder(root, 6, "train")
    folder(root, 3, "test")
    (root / "classes.txt").write_text("ground\ncat\n\ndog\n", encoding="utf-8")
    task = load(root)
    assert task.classes == ("ground", "cat", "dog")
    assert (len(task.train), len(task.validation), len(task.test)) == (5, 1, 3)
    np.testing.assert_array_equal(task.test.labels[1], draw(1)[1])


def test_masks_are_scaled_to_the_nearest_pixel_so_that_no_class_is_invented(tmp_path: Path):
    root = folder(tmp_path / "data")
    _, mask = draw(0)
    mask[mask == 1] = 2
    Image.fromarray(mask).save(root / "masks/0.png")
    task = load(root, resolution=64)
    assert task.train.labels.shape[1:] == (64, 64)
    assert set(np.unique(np.concatenate([part.labels for part in (task.train, task.test)]))) <= {0, 1, 2}
    again = load(root, resolution=64)
    assert again.fingerprint == task.fingerprint


def test_an_npz_is_read(tmp_path: Path):
    pairs = [draw(at) for at in range(10)]
    path = tmp_path / "data.npz"
    images, masks = (np.stack(one) for one in zip(*pairs))
    np.savez(path, images=images, masks=masks, classes=["a", "b", "c"], split=[0] * 7 + [1] * 3)
    task = load(path)
    assert task.classes == ("a", "b", "c")
    np.testing.assert_array_equal(task.test.labels, masks[7:])
    np.testing.assert_array_equal(task.test.samples, images[7:])


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"images": np.zeros((4, 32, 32), np.uint8)}, "holds images"),
        ({"images": np.zeros((4, 32, 32), np.uint8), "masks": np.zeros((4, 32, 31), np.uint8)}, "the masks"),
        ({"images": np.zeros((4, 32, 32), np.uint8), "masks": np.zeros((4, 32, 32))}, "the masks"),
        (
            {"images": np.zeros((4, 32, 32), np.float32), "masks": np.zeros((4, 32, 32), np.uint8)},
            "the images",
        ),
        ({"images": np.zeros((4, 32, 32), np.uint8), "masks": np.zeros((4, 32, 32), np.uint8)}, "1 classes"),
        (
            {
                "images": np.zeros((4, 32, 32), np.uint8),
                "masks": np.full((4, 32, 32), 7, np.uint8),
                "classes": ["a", "b"],
            },
            "names a class that there is not",
        ),
        (
            {
                "images": np.zeros((4, 32, 32), np.uint8),
                "masks": np.full((4, 32, 32), 1, np.uint8),
                "split": [0, 1, 2, 0],
            },
            "the split",
        ),
        ({"images": np.array([{}], dtype=object), "masks": np.zeros(1)}, "cannot be read"),
    ],
)
def test_an_npz_of_another_form_is_refused(tmp_path: Path, content: dict[str, object], match: str):
    path = tmp_path / "data.npz"
    np.savez(path, **content)
    with pytest.raises(DataError, match=match):
        load(path)


def test_a_mask_that_is_missing_or_holds_colours_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="holds colours"):
        load(folder(tmp_path / "colours", 3, mode="RGB"))
    root = folder(tmp_path / "gap", 3)
    (root / "masks/1.png").unlink()
    with pytest.raises(DataError, match="has no mask"):
        load(root)


def test_a_mask_that_is_broken_is_refused(tmp_path: Path):
    root = folder(tmp_path / "data", 3)
    whole = (root / "masks/1.png").read_bytes()
    (root / "masks/1.png").write_bytes(whole[:60])
    with pytest.raises(DataError, match="not an image"):
        load(root)


def test_a_palette_is_read_as_numbers(tmp_path: Path):
    root = folder(tmp_path / "data", 5)
    _, mask = draw(2)
    picture = Image.fromarray(mask)
    picture.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    picture.save(root / "masks/2.png")
    task = load(root)
    masks = [part.labels[at] for part in (task.train, task.validation, task.test) for at in range(len(part))]
    assert any(np.array_equal(one, mask) for one in masks)


def test_data_that_is_not_there_and_sides_that_maps_do_not_divide_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="multiple of 32"):
        load(folder(tmp_path / "data"), resolution=40)
    with pytest.raises(DataError, match="64 pixels"):
        tasks.load(
            TaskSection(data="digits-masks", kind="segmentation", resolution=96),
            beside=tmp_path,
            cache=tmp_path,
        )
