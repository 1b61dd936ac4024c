"""A teacher that is called step by step is exported as one step, where it says how."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from edgekd.distillation.teachers import from_module
from edgekd.errors import TeacherError
from edgekd.stages.evaluate import teacher_model
from edgekd.tasks.generation import Generation, from_text
from edgekd.values.job import TaskSection

CONTEXT, LETTERS = 6, 97


class Decaying(nn.Module):
    """Sums what it has read, half of it forgotten with every letter."""

    def __init__(self) -> None:
        super().__init__()
        self.end = nn.Linear(LETTERS, LETTERS)

    def forward(self, letters: Tensor) -> Tensor:
        state, said = torch.zeros(len(letters), LETTERS), []
        for letter in nn.functional.one_hot(letters, LETTERS).float().unbind(1):
            state = state / 2 + letter
            said.append(self.end(state))
        return torch.stack(said, dim=1)


class WithStep(Decaying):
    def step(self) -> object:
        return Step(self.end), {"letter": (1, LETTERS), "state": (1, LETTERS)}


class Step(nn.Module):
    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.end = end

    def forward(self, letter: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        after = state / 2 + letter
        return self.end(after), after


@pytest.fixture(scope="module")
def task() -> Generation:
    section = TaskSection(data="squares", kind="generation", resolution=CONTEXT)
    return from_text(" ".join(str(number**2) for number in range(100)), section=section)


def shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    return {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in model.graph.input}


def test_a_teacher_with_a_step_is_measured_by_it(task: Generation, tmp_path: Path):
    teacher = from_module(WithStep(), task)
    model = onnx.load(teacher_model(tmp_path, teacher, task).file.path)
    assert shapes(model) == {"letter": [1, LETTERS], "state": [1, LETTERS]}
    letters = np.asarray([[3, 1, 4]])
    run, state = ReferenceEvaluator(model), np.zeros((1, LETTERS), np.float32)
    for letter in letters[0]:
        said, state = run.run(None, {"letter": np.eye(LETTERS, dtype=np.float32)[[letter]], "state": state})
    with torch.inference_mode():
        expected = teacher.module(torch.from_numpy(letters))[:, -1].numpy()
    np.testing.assert_allclose(said, expected, atol=1e-5)


def test_a_teacher_without_one_reads_the_whole_window_for_every_letter(task: Generation, tmp_path: Path):
    model = onnx.load(teacher_model(tmp_path, from_module(Decaying(), task), task).file.path)
    assert list(shapes(model).values()) == [[1, CONTEXT]]


@pytest.mark.parametrize(("given", "says"), [(3, "failed"), ((3, {}), "no module")])
def test_a_step_of_another_form_is_refused(task: Generation, tmp_path: Path, given: object, says: str):
    class Wrong(Decaying):
        def step(self) -> object:
            return given

    with pytest.raises(TeacherError, match=says):
        teacher_model(tmp_path, from_module(Wrong(), task), task)
