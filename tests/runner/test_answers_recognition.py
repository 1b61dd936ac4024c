"""What a bundle for recognition says of images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgekd.runner.answers_recognition import add_arguments, answer, embeddings, show
from edgekd.runner.files import Refusal


def student() -> SimpleNamespace:
    """Stand in for a bundle: an image's embedding is its first row of pixels."""
    recipe = {"mean": [0.0], "std": [1.0], "height": 4, "width": 4, "resize": "bilinear"}
    inputs = {"images": (1, 1, 4, 4)}
    return SimpleNamespace(recipe=recipe, inputs=inputs, rows=lambda tensors: tensors[:, 0, 0])


def drawn(path: Path, *row: int) -> Path:
    pixels = np.zeros((4, 4), np.uint8)
    pixels[0] = row
    Image.fromarray(pixels).save(path)
    return path


def asked(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(list(words))


def test_an_embedding_has_length_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    image = drawn(tmp_path / "a.png", 30, 0, 40, 0)
    found, inputs = answer(student(), asked("--image", str(image)))
    assert found["embedding"] == pytest.approx([0.6, 0.0, 0.8, 0.0])
    assert "similarity" not in found
    assert inputs["images"].shape == (1, 1, 4, 4)
    assert json.loads(json.dumps(found)) == found
    show(found)
    assert capsys.readouterr().out == "0.6000 0.0000 0.8000 0.0000\n"


def test_two_images_are_compared_by_the_cosine(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first, second = drawn(tmp_path / "a.png", 30, 0, 40, 0), drawn(tmp_path / "b.png", 0, 0, 9, 0)
    found, _ = answer(student(), asked("--image", str(first), "--against", str(second)))
    assert found["similarity"] == pytest.approx(0.8)
    show(found)
    assert capsys.readouterr().out.splitlines()[1] == "similarity\t0.8000"
    same, _ = answer(student(), asked("--image", str(first), "--against", str(first)))
    assert same["similarity"] == pytest.approx(1.0)


@pytest.mark.parametrize("row", [np.zeros((1, 4)), np.full((1, 4), np.nan)])
def test_an_embedding_without_a_direction_is_refused(row: np.ndarray):
    with pytest.raises(Refusal, match="without a direction") as caught:
        embeddings(row.astype(np.float32))
    assert caught.value.exit_code == 6
