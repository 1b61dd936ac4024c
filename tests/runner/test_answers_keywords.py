from __future__ import annotations

import argparse
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.runner.answers_keywords import add_arguments, answer, show
from edgekd.runner.files import Refusal
from edgekd.runner.from_spectrogram import prepare
from edgekd.values.preprocess import Spectrogram

RECIPE = Spectrogram(
    sample_rate=8000, samples=1000, bins=8, frames=8, window=200, hop=110, floor=1e-6, mean=0.0, std=1.0
)


class Low:
    """Says yes to low tones."""

    classes = ("no", "yes")
    recipe = vars(RECIPE)
    inputs = {"images": (1, 1, 8, 8)}  # noqa: RUF012 - never changed

    def rows(self, pictures: np.ndarray) -> np.ndarray:
        low = pictures[:, 0, :4].mean(axis=(1, 2)) - pictures[:, 0, 4:].mean(axis=(1, 2))
        return np.stack([-low, low], axis=1)


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.rint(9000 * np.sin(np.arange(1000) * 0.2)).astype(np.int16).tobytes())
    return tmp_path / "tone.wav"


def options(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(list(given))


def said(student: Any, *given: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return answer(student, options(*given))


def test_it_names_the_likeliest_words_first(tone: Path, capsys: pytest.CaptureFixture[str]):
    found, inputs = said(Low(), "--wav", str(tone), "--top", "2")
    assert [one["word"] for one in found["top"]] == ["yes", "no"]
    assert sum(one["probability"] for one in found["top"]) == pytest.approx(1.0)
    assert found["word"] == "yes"
    show(found)
    assert capsys.readouterr().out.splitlines()[0].startswith("yes\t")
    assert inputs["images"].shape == Low.inputs["images"]
    assert prepare(np.zeros((1, 1000), np.int16), RECIPE).shape == inputs["images"].shape


def test_a_model_of_other_words_is_refused(tone: Path):
    student = Low()
    student.classes = ("no", "yes", "perhaps")
    with pytest.raises(Refusal, match="2 outputs for 3 words"):
        said(student, "--wav", str(tone))


def test_top_0_is_refused(tone: Path):
    with pytest.raises(Refusal, match="--top"):
        said(Low(), "--wav", str(tone), "--top", "0")
