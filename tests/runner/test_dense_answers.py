"""What bundles for detection and segmentation say of an image, and draw."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekd.runner import answers_detection, answers_segmentation
from edgekd.runner.boxes import BINS, REACH
from edgekd.runner.files import Refusal
from edgekd.tasks.boxes import padded
from tests.tasks import perfect_maps

CLASSES = ("ant", "bée")
POST = {"bins": BINS, "reach": REACH, "overlap": 0.5, "most": 10, "least": 0.3}


def student(maps: np.ndarray, **more: Any) -> SimpleNamespace:
    """Stand in for a bundle that gives these maps of whatever it sees."""
    recipe = {"mean": [0.5] * 3, "std": [0.5] * 3, "height": 64, "width": 64, "resize": "bilinear"}
    given = {"recipe": recipe, "classes": CLASSES, "post": POST, "inputs": {"images": (1, 3, 64, 64)}, **more}
    return SimpleNamespace(rows=lambda tensors: maps[None], **given)


def detector(**more: Any) -> SimpleNamespace:
    truth = padded([np.array([[0, 0.1, 0.2, 0.5, 0.6, 0], [1, 0.6, 0.5, 1, 1, 0]], np.float32)])
    return student(perfect_maps.of_boxes(truth, 2, 16)[0], **more)


def asked(part: Any, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    part.add_arguments(parser)
    return parser.parse_args(list(words))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_boxes_are_in_pixels_of_the_given_image(photo: Path, capsys: pytest.CaptureFixture[str]):
    found, inputs = answers_detection.answer(detector(), asked(answers_detection, "--image", str(photo)))
    assert (found["width"], found["height"]) == (200, 100)
    by_label = {one["label"]: one["box"] for one in found["boxes"]}
    np.testing.assert_allclose(by_label["ant"], [20, 20, 100, 60], atol=0.2)
    np.testing.assert_allclose(by_label["bée"], [120, 50, 200, 100], atol=0.2)
    assert inputs["images"].shape == (1, 3, 64, 64)
    assert json.loads(json.dumps(found)) == found
    answers_detection.show(found)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t")[1] == "1.000"
    assert {line.split("\t")[0] for line in lines} == set(CLASSES)


def test_boxes_are_drawn_on_the_image(photo: Path, tmp_path: Path):
    to = tmp_path / "drawn.png"
    answers_detection.answer(detector(), asked(answers_detection, "--image", str(photo), "--draw", str(to)))
    drawn, before = np.asarray(Image.open(to)), np.asarray(Image.open(photo))
    grow = drawn.shape[0] // before.shape[0]
    assert drawn.shape == (100 * grow, 200 * grow, 3)
    left, top = 20 * grow, 40 * grow  # on the left edge of the first box
    assert (drawn[top, left] == answers_detection._COLOURS[0]).all()
    np.testing.assert_array_equal(drawn[80 * grow, 40 * grow], before[80, 40])


def test_a_score_can_be_asked_for(photo: Path):
    low = perfect_maps.of_boxes(padded([np.array([[0, 0.1, 0.2, 0.5, 0.6, 0]], np.float32)]), 2, 16)[0]
    low[0][low[0] == 9] = -1.5  # a score of 0.18
    weak = student(low)
    shown, _ = answers_detection.answer(weak, asked(answers_detection, "--image", str(photo)))
    assert shown["boxes"] == []
    more, _ = answers_detection.answer(
        weak, asked(answers_detection, "--image", str(photo), "--least", "0.1")
    )
    assert [one["label"] for one in more["boxes"]] == ["ant"]
    with pytest.raises(Refusal, match="--least"):
        answers_detection.answer(weak, asked(answers_detection, "--image", str(photo), "--least", "1.5"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"post": {}},
        {"post": {**POST, "bins": "many"}},
        {"post": {**POST, "bins": 7}},
        {"classes": ("ant", "bee", "cat")},
    ],
)
def test_a_manifest_that_does_not_fit_the_model_is_refused(photo: Path, wrong: dict[str, Any]):
    with pytest.raises(Refusal) as refused:
        answers_detection.answer(detector(**wrong), asked(answers_detection, "--image", str(photo)))
    assert refused.value.exit_code == 6


def segmenter(**more: Any) -> SimpleNamespace:
    maps = np.zeros((2, 16, 16), np.float32)
    maps[1, :, 8:] = 1
    maps[0, :, :8] = 1
    return student(maps, **more)


def test_a_mask_has_the_size_of_the_image_and_the_classes_as_its_palette(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    to = tmp_path / "mask.png"
    found, inputs = answers_segmentation.answer(
        segmenter(), asked(answers_segmentation, "--image", str(photo), "--mask", str(to))
    )
    assert found["shares"] == {"ant": 0.5, "bée": 0.5}
    assert inputs["images"].shape == (1, 3, 64, 64)
    with Image.open(to) as picture:
        assert picture.mode == "P"
        assert picture.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
        mask = np.asarray(picture)
    assert mask.shape == (100, 200)
    assert (mask == np.arange(200) // 100).all()
    answers_segmentation.show(found)
    assert capsys.readouterr().out.splitlines() == ["ant\t50.00 %", "bée\t50.00 %"]


def test_a_segmenter_of_other_classes_is_refused(photo: Path):
    with pytest.raises(Refusal) as refused:
        answers_segmentation.answer(
            segmenter(classes=("a",)), asked(answers_segmentation, "--image", str(photo))
        )
    assert refused.value.exit_code == 6


@pytest.mark.parametrize(
    ("part", "option", "made"),
    [(answers_detection, "--draw", detector), (answers_segmentation, "--mask", segmenter)],
)
def test_a_picture_that_cannot_be_written_is_said_so(
    photo: Path, tmp_path: Path, part: Any, option: str, made: Any
):
    to = str(tmp_path / "nowhere" / "x.png")
    with pytest.raises(Refusal, match="cannot write"):
        part.answer(made(), asked(part, "--image", str(photo), option, to))
