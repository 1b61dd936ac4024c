"""Reference outputs and accuracies, against torch called by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from edgekd.distillation.checkpoints import save_module
from edgekd.distillation.evaluation import outputs_of
from edgekd.distillation.teachers import Teacher, from_module
from edgekd.errors import IntegrityError
from edgekd.stages.evaluate import (
    prepare,
    recorded_steps,
    reference,
    reference_answers,
    stepping,
    teacher_accuracy,
    teacher_model,
)
from edgekd.students import build
from edgekd.tasks import ImageClassification, from_arrays
from edgekd.tasks.generation import Generation, from_text
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.job import TaskSection
from edgekd.values.student import StageSpec, StudentSpec

SPEC = StudentSpec(
    family="residual",
    resolution=8,
    stem=8,
    stages=tuple(StageSpec(width=8 * 2**at, depth=1, kernel=3, expansion=1.0) for at in range(3)),
)


class Brightness(nn.Module):
    """Knows the class of an image by its mean: dark, grey or bright."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([-mean, 0.3 - mean.abs(), mean], dim=1)


@pytest.fixture(scope="module")
def task() -> ImageClassification:
    labels = np.arange(90) % 3
    shades = np.array([10, 128, 245], np.uint8)[labels]
    images = np.broadcast_to(shades[:, None, None, None], (90, 8, 8, 1)).copy()
    return from_arrays(images, labels)


@pytest.fixture(scope="module")
def teacher(task: ImageClassification) -> Teacher:
    return from_module(Brightness(), task)


def test_prepared_inputs_are_what_the_task_makes_of_a_split(
    task: ImageClassification, tmp_path: Path
) -> None:
    rows = np.load(prepare(tmp_path, task, "test", 8, None).verified(), allow_pickle=False)
    assert rows.shape == (len(task.test), 1, 1, 8, 8)
    assert np.array_equal(rows, task.inputs(task.test, 8))
    fewer = np.load(prepare(tmp_path, task, "test", 8, 5).verified(), allow_pickle=False)
    assert np.array_equal(fewer, task.inputs(task.test, 8, limit=5))


def test_reference_logits_are_the_trained_students(task: ImageClassification, tmp_path: Path) -> None:
    module = build(SPEC, channels=1, classes=3, seed=4)
    inputs = prepare(tmp_path, task, "validation", 8, None)
    logits = reference(tmp_path, SPEC, 1, 3, _checkpoint(tmp_path, module), inputs)
    images = torch.from_numpy(np.load(inputs.path)[:, 0])
    with torch.inference_mode():
        expected = module.eval()(images).numpy()
    np.testing.assert_allclose(np.load(logits.verified()), expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_that_was_changed_is_refused(task: ImageClassification, tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, build(SPEC, channels=1, classes=3))
    checkpoint.weights.path.write_bytes(b"other weights")
    inputs = prepare(tmp_path, task, "validation", 8, 3)
    with pytest.raises(IntegrityError, match="not the file that was recorded"):
        reference(tmp_path, SPEC, 1, 3, checkpoint, inputs)


def test_the_teachers_accuracy_is_counted_on_the_split_asked_for(
    task: ImageClassification, teacher: Teacher, tmp_path: Path
) -> None:
    assert teacher_accuracy(tmp_path, teacher, task, "test") == 1.0
    inverted = from_module(nn.Sequential(Brightness(), _Reversed()), task)
    right = float((task.validation.labels == 1).mean())
    assert teacher_accuracy(tmp_path, inverted, task, "validation") == pytest.approx(right)


def test_the_teacher_is_exported_as_its_users_run_it(
    task: ImageClassification, teacher: Teacher, tmp_path: Path
) -> None:
    model = onnx.load(str(teacher_model(tmp_path, teacher, task).file.path))
    (images,) = model.graph.input
    assert images.name == "images"
    assert [dim.dim_value for dim in images.type.tensor_type.shape.dim] == [1, 1, 8, 8]


GRU = StudentSpec(
    family="gru",
    resolution=6,
    stem=4,
    stages=(StageSpec(width=8, depth=2, kernel=1, expansion=1.0),),
)


@pytest.fixture(scope="module")
def text() -> Generation:
    section = TaskSection(data="text", kind="generation", resolution=6)
    return from_text("the quick brown fox jumps over the lazy dog\n" * 12, section=section)


def test_what_a_stepwise_student_answers_is_what_the_whole_network_says(
    text: Generation, tmp_path: Path
) -> None:
    module = build(GRU, channels=text.channels, classes=text.outputs, seed=4)
    kept = reference_answers(tmp_path, GRU, text, _checkpoint(tmp_path, module), "test", 3)
    expected = outputs_of(module, text, text.test.spread(3), 6)
    np.testing.assert_allclose(np.load(kept.verified()), expected, atol=1e-5)


def test_recorded_steps_are_what_goes_in_and_out_of_the_network(text: Generation, tmp_path: Path) -> None:
    module = build(GRU, channels=text.channels, classes=text.outputs, seed=4)
    checkpoint = _checkpoint(tmp_path, module)
    kept = recorded_steps(tmp_path, GRU, text, checkpoint, "train", 24)
    rows = {name: np.load(one.verified()) for name, one in kept.items()}
    assert {name: array.shape for name, array in rows.items()} == {
        "letter": (18, 1, text.channels),  # 3 windows, letter by letter
        "state": (18, 1, 16),
        "logits": (18, 1, text.outputs),
        "next_state": (18, 1, 16),
    }
    starts = np.arange(18) % 6 == 0
    assert not rows["state"][starts].any()
    follows = np.flatnonzero(~starts)
    np.testing.assert_array_equal(rows["state"][follows], rows["next_state"][follows - 1])
    again = stepping(GRU, text, checkpoint)({name: rows[name] for name in ("letter", "state")})
    np.testing.assert_array_equal(again["logits"], rows["logits"])


def test_a_teacher_of_letters_is_exported_with_whole_numbers(text: Generation, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(text.channels, 8), nn.Linear(8, text.outputs))
    model = teacher_model(tmp_path, from_module(net, text), text)
    session = onnxruntime.InferenceSession(str(model.file.path), providers=["CPUExecutionProvider"])
    (letters,) = session.get_inputs()
    assert (letters.name, letters.type, letters.shape) == ("inputs", "tensor(int64)", [1, 6])
    window = text.test.samples[:1]
    (found,) = session.run(None, {"inputs": window})
    with torch.inference_mode():
        np.testing.assert_allclose(found, net(torch.from_numpy(window)).numpy(), atol=1e-5)


class _Reversed(nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.flip(1)


def _checkpoint(folder: Path, module: nn.Module) -> Checkpoint:
    return Checkpoint(
        weights=save_module(folder / "weights.safetensors", module),
        accuracy=0.5,
        epochs=1,
        seconds=1.0,
        images_per_second=1.0,
        losses=(1.0,),
    )
