"""The teachers of the example jobs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd import tasks
from edgekd.distillation.teachers import load_teacher
from edgekd.tasks.generation import from_text
from edgekd.tasks.keywords import from_recordings
from edgekd.values.job import TaskSection, TeacherSection
from tests.distillation.small import digits
from tests.tasks import sine_words

ROOT = Path(__file__).resolve().parents[2]
JOBS = ROOT / "tools/jobs"
WEIGHTS = ROOT.parent / "shared/data/cifar_teachers/resnet56-4bfd9763.th"
CIFAR = ROOT.parent / "shared/data/cifar10/cifar10_jpeg.npz"


def multiplications(module: torch.nn.Module, images: torch.Tensor) -> int:
    """Count the multiply-accumulates of the convolutions."""
    counts = []

    def count(layer: torch.nn.Conv2d, _: object, output: torch.Tensor) -> None:
        counts.append(output[0].numel() * layer.weight[0].numel())

    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(count)
    module(images)
    return sum(counts)


def test_the_teacher_of_the_digits_is_large_enough_to_be_worth_distilling():
    teacher = load_teacher(TeacherSection(model="models.py:digits_teacher"), beside=JOBS, task=digits())
    assert multiplications(teacher.module, torch.zeros(1, 1, 8, 8)) > 20e6


def colours() -> tasks.ImageClassification:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    return tasks.from_arrays(pixels, np.arange(60) % 10)


def test_resnet_56_has_the_layers_and_the_size_of_its_paper():
    teacher = load_teacher(TeacherSection(model="models.py:resnet56"), beside=JOBS, task=colours())
    weights = sum(weight.numel() for weight in teacher.module.parameters())
    assert round(weights / 1e6, 2) == 0.85
    assert 125e6 < multiplications(teacher.module, torch.zeros(1, 3, 32, 32)) < 127e6


@pytest.mark.skipif(not (WEIGHTS.exists() and CIFAR.exists()), reason=f"{WEIGHTS} or {CIFAR} is not here")
def test_resnet_56_with_its_published_weights_knows_real_images(tmp_path: Path):
    section = TeacherSection(model="models.py:resnet56", weights=str(WEIGHTS))
    settings = TaskSection(data="", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    task = dataclasses.replace(colours(), mean=settings.mean, std=settings.std)
    teacher = load_teacher(section, beside=JOBS, task=task)
    with np.load(CIFAR, allow_pickle=False) as archive:
        at = np.flatnonzero(archive["split"] == 1)[:60]
        jpeg, offset, labels = archive["jpeg"], archive["offset"], archive["label"][at]
    for number, image in enumerate(at):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg[offset[image] : offset[image + 1]].tobytes())
    pixels = np.concatenate([_pixels(tmp_path / f"{number}.jpg") for number in range(len(at))])
    split = tasks.Split(samples=pixels, labels=labels.astype(np.int64))
    with torch.inference_mode():
        logits = teacher.module(torch.from_numpy(task.inputs(split, 32)[:, 0])).numpy()
    assert task.score(logits, split.labels) > 0.7


def _pixels(path: Path) -> np.ndarray:
    from edgekd.runner import load_image

    return load_image(path, 3)


def test_the_teacher_of_the_letters_says_step_by_step_what_it_says_of_a_whole_text():
    section = TaskSection(data="squares", kind="generation", resolution=8)
    task = from_text(" ".join(str(number**2) for number in range(100)), section=section)
    teacher = load_teacher(TeacherSection(model="models.py:letters_teacher"), beside=JOBS, task=task)
    step, shapes = teacher.module.step()
    letters, state = torch.from_numpy(task.test.samples[:1]), torch.zeros(shapes["state"])
    expected = teacher.module(letters)
    for at in range(8):
        logits, state = step(torch.nn.functional.one_hot(letters[:, at], task.channels).float(), state)
        torch.testing.assert_close(logits, expected[:, at], atol=1e-5, rtol=1e-4)


def test_the_teacher_of_the_keywords_is_large_enough_to_be_worth_distilling():
    said = sine_words.recordings()
    ten = (
        np.arange(len(said.labels)) % 10
    )  # the teacher's ten words: what is heard in them does not matter here
    task = from_recordings(
        dataclasses.replace(said, labels=ten, classes=tuple("abcdefghij"), speakers=()),
        section=TaskSection(data="sine words", kind="keywords", resolution=32),
    )
    teacher = load_teacher(TeacherSection(model="models.py:keywords_teacher"), beside=JOBS, task=task)
    assert multiplications(teacher.module, torch.zeros(1, 1, 32, 32)) > 20e6
