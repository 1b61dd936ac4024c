from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator

from edgekd import students
from edgekd.stages.export import export
from edgekd.students import gru
from edgekd.values.student import StageSpec, StudentSpec

LETTERS = 7


def spec_of(*stages: tuple[int, int]) -> StudentSpec:
    found = tuple(StageSpec(width=width, depth=depth, kernel=1, expansion=1.0) for width, depth in stages)
    return StudentSpec(family="gru", resolution=12, stem=5, stages=found)


SHAPES = [spec_of((8, 1)), spec_of((8, 2)), spec_of((8, 2), (16, 1))]


@pytest.mark.parametrize("spec", SHAPES, ids=str)
def test_a_step_after_another_says_what_the_whole_says(spec: StudentSpec):
    whole = students.build(spec, channels=LETTERS, classes=LETTERS).eval()
    letters = torch.randint(0, LETTERS, (3, 12), generator=torch.Generator().manual_seed(0))
    step = students.shipped(whole, spec)
    shapes = students.inputs(spec, LETTERS)
    assert list(shapes) == ["letter", "state"]
    state = torch.zeros(3, shapes["state"][1])
    with torch.inference_mode():
        expected = whole(letters)
        for at in range(12):
            logits, state = step(F.one_hot(letters[:, at], LETTERS).float(), state)
            torch.testing.assert_close(logits, expected[:, at], atol=1e-5, rtol=1e-5)


def test_a_letter_knows_nothing_of_those_behind_it():
    whole = students.build(SHAPES[1], channels=LETTERS, classes=LETTERS).eval()
    first = torch.randint(0, LETTERS, (1, 12), generator=torch.Generator().manual_seed(1))
    other = first.clone()
    other[:, 6:] = (other[:, 6:] + 1) % LETTERS
    with torch.inference_mode():
        torch.testing.assert_close(whole(first)[:, :6], whole(other)[:, :6])


@pytest.mark.parametrize("spec", SHAPES, ids=str)
def test_its_layers_are_the_matrices_of_the_step(spec: StudentSpec):
    step = students.shipped(students.build(spec, channels=LETTERS, classes=LETTERS), spec)
    counted = sum(layer.params for layer in students.layers(spec, channels=LETTERS, classes=LETTERS))
    assert counted == sum(weight.numel() for weight in step.parameters())


@pytest.mark.parametrize("spec", SHAPES, ids=str)
def test_the_file_computes_the_step_of_matrices_and_activations(spec: StudentSpec, tmp_path: Path):
    model = export(tmp_path, spec, LETTERS, LETTERS, None, 3)
    graph = onnx.load(model.file.path)
    assert {node.op_type for node in graph.graph.node} <= {
        "Gemm", "Add", "Sub", "Mul", "Sigmoid", "Tanh", "Slice", "Split", "Concat",
    }  # fmt: skip
    assert [one.name for one in graph.graph.input] == ["letter", "state"]
    assert [one.name for one in graph.graph.output] == ["logits", "next_state"]
    step = students.shipped(students.build(spec, channels=LETTERS, classes=LETTERS, seed=3), spec)
    rng = np.random.default_rng(0)
    letter = np.eye(LETTERS, dtype=np.float32)[[2]]
    state = rng.uniform(-1, 1, students.inputs(spec, LETTERS)["state"]).astype(np.float32)
    found = ReferenceEvaluator(graph).run(None, {"letter": letter, "state": state})
    with torch.inference_mode():
        expected = step(torch.from_numpy(letter), torch.from_numpy(state))
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_what_may_be_proposed_has_the_context_of_the_task():
    space = students.space_for(resolution=24, channels=LETTERS, classes=LETTERS, families=("gru",))
    assert space.resolutions == (24,)
    assert space.expansions == {"gru": gru.EXPANSIONS}
    smallest = students.smallest(space, "gru")
    assert students.contains(space, smallest)
    assert smallest.stages[0].width == min(space.widths[0])
