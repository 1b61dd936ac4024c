from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from edgekd.distillation import loop, teachers
from edgekd.distillation.arithmetic import Arithmetic
from edgekd.distillation.checkpoints import save_module
from edgekd.distillation.knowledge import LOGITS
from edgekd.distillation.quantized import QuantizedStudent
from edgekd.distillation.teachers import from_module
from edgekd.errors import IntegrityError, ModelError, UsageError
from edgekd.stages.distill import distill
from edgekd.stages.distill_quantized import distill_quantized, export_quantized, quantized_course
from edgekd.stages.label import label
from edgekd.store import Store
from edgekd.students import build, fold
from edgekd.tasks import ImageClassification
from edgekd.values.artifact import Artifact
from edgekd.values.checkpoint import Checkpoint, Labels
from edgekd.values.job import TASKS
from edgekd.values.model import Precision
from edgekd.values.quantization import QuantizedCheckpoint, Scheme
from edgekd.values.student import StageSpec, StudentSpec
from tests.distillation import small
from tests.distillation.small import SPEC, recipe

FEW = Scheme(weight_bits=3, activation_bits=3)
WIDE = dataclasses.replace(SPEC, stem=16, stages=(dataclasses.replace(SPEC.stages[0], width=16),))


def digits() -> ImageClassification:
    return dataclasses.replace(small.digits(), crop=0)


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loop, teachers):
        monkeypatch.setattr(module, "choose_arithmetic", lambda *_, **__: Arithmetic())


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Labels, ...]:
    """What a nearest-mean classifier says of the digits."""
    task = digits()
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    pixels = torch.from_numpy(task.inputs(task.train, 8)[:, 0])
    means = torch.stack([pixels[task.train.labels == at].mean(dim=0).flatten() for at in range(10)])
    with torch.no_grad():
        module[1].weight.copy_(means)
        module[1].bias.copy_(-0.5 * means.square().sum(dim=1))
    folder = tmp_path_factory.mktemp("labels")
    teacher = from_module(module, task)
    given = recipe(losses={"kd": 1.0})
    return tuple(label(folder / str(view), teacher, task, view, given, 0) for view in range(2))


@pytest.fixture(scope="module")
def trained(labels: tuple[Labels, ...], tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A float student."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "choose_arithmetic", lambda *_, **__: Arithmetic())
        given = recipe(losses={"kd": 1.0}, optimizer="adamw", learning_rate=0.01, ema=0.9)
        return distill(tmp_path_factory.mktemp("student"), WIDE, digits(), labels, given, 10, 0)


def quantized(
    folder: Path, trained: Checkpoint, labels: tuple[Labels, ...], scheme: Scheme, epochs: int
) -> QuantizedCheckpoint:
    return distill_quantized(folder, WIDE, digits(), trained, labels, scheme, 32, epochs, 0)


def test_training_gives_back_what_three_bits_took(
    trained: Checkpoint, labels: tuple[Labels, ...], tmp_path: Path
):
    calibrated = quantized(tmp_path / "a", trained, labels, FEW, 0)
    found = quantized(tmp_path / "b", trained, labels, FEW, 6)
    gap = trained.accuracy - calibrated.checkpoint.accuracy
    assert gap > 0.05  # so that there is something to give back
    assert found.checkpoint.accuracy >= calibrated.checkpoint.accuracy + gap / 2
    assert (calibrated.checkpoint.epochs, found.checkpoint.epochs) == (0, 6)
    assert found.grids != calibrated.grids


def test_no_label_is_looked_at(trained: Checkpoint, labels: tuple[Labels, ...], tmp_path: Path):
    task = digits()
    blind = dataclasses.replace(
        task, train=dataclasses.replace(task.train, labels=np.zeros_like(task.train.labels))
    )
    expected = quantized(tmp_path / "a", trained, labels, FEW, 1)
    found = distill_quantized(tmp_path / "b", WIDE, blind, trained, labels, FEW, 32, 1, 0)
    assert found.grids == expected.grids
    assert found.checkpoint.weights.sha256 == expected.checkpoint.weights.sha256


def test_training_that_makes_it_worse_leaves_it_as_calibrated(
    trained: Checkpoint, labels: tuple[Labels, ...], tmp_path: Path
):
    upside_down = []
    for number, one in enumerate(labels):
        path = tmp_path / f"{number}.npy"
        np.save(path, -np.load(one.outputs["logits"].path))
        upside_down.append(dataclasses.replace(one, outputs={"logits": Artifact.of(path)}))
    calibrated = quantized(tmp_path / "a", trained, labels, Scheme(), 0)
    found = quantized(tmp_path / "b", trained, tuple(upside_down), Scheme(), 1)
    assert found.checkpoint.accuracy == calibrated.checkpoint.accuracy
    assert found.grids == calibrated.grids


def test_an_interrupted_training_ends_where_it_would_have(
    trained: Checkpoint, labels: tuple[Labels, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = quantized(tmp_path / "whole", trained, labels, FEW, 3)
    run, calls = loop.run_epoch, []

    def until(state: object, course: object, device: object) -> float:
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(1)
        return run(state, course, device)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_epoch", until)
        with pytest.raises(KeyboardInterrupt):
            quantized(tmp_path / "cut", trained, labels, FEW, 3)
    again = quantized(tmp_path / "cut", trained, labels, FEW, 3)
    assert again.checkpoint.weights.sha256 == whole.checkpoint.weights.sha256
    assert again.grids == whole.grids


def test_the_store_keeps_it_and_other_bits_are_another(
    trained: Checkpoint, labels: tuple[Labels, ...], tmp_path: Path
):
    store = Store(tmp_path)

    def kept(scheme: Scheme) -> QuantizedCheckpoint:
        return store.run(distill_quantized, WIDE, digits(), trained, labels, scheme, 32, 0, 0)

    assert kept(FEW) == kept(FEW)
    assert kept(Scheme()).checkpoint.weights.sha256 != kept(FEW).checkpoint.weights.sha256


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(weight_bits=4)])
def test_the_file_answers_as_the_simulation_did(
    scheme: Scheme, trained: Checkpoint, labels: tuple[Labels, ...], tmp_path: Path
):
    found = quantized(tmp_path / "student", trained, labels, scheme, 1)
    model = export_quantized(tmp_path, WIDE, 1, 10, found)
    assert model.precision is Precision.INT8
    session = ort.InferenceSession(model.file.path, providers=["CPUExecutionProvider"])
    task = digits()
    rows = task.inputs(task.validation, 8)
    answers = np.concatenate([session.run(None, {"images": row})[0] for row in rows])
    # Sums may be one integer off: a label that changes is one in this many.
    assert abs(task.score(answers, task.validation.labels) - found.checkpoint.accuracy) <= 1 / len(rows)


def test_a_student_of_features_is_written_with_its_own_input_s_name(trained: Checkpoint, tmp_path: Path):
    stages = (StageSpec(width=12, depth=2, kernel=1, expansion=1.0),)
    spec = StudentSpec(family="mlp", resolution=1, stem=16, stages=stages)
    student = QuantizedStudent(fold(build(spec, channels=6, classes=3, seed=1)), Scheme())
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    student.calibrate(rows)
    weights = save_module(tmp_path / "weights.safetensors", student.eval())
    kept = QuantizedCheckpoint(
        checkpoint=dataclasses.replace(trained, weights=weights), scheme=Scheme(), grids=student.grids()
    )
    session = ort.InferenceSession(export_quantized(tmp_path, spec, 6, 3, kept).file.path)
    (name,), (given,) = ([one.name for one in side] for side in (session.get_outputs(), session.get_inputs()))
    assert given == "features"
    found = np.concatenate([session.run([name], {given: row[None].numpy()})[0] for row in rows])
    with torch.no_grad():
        assert np.array_equal(found, student(rows).numpy())


def test_a_changed_checkpoint_or_fewer_bits_than_runtimes_have_are_refused(
    trained: Checkpoint, labels: tuple[Labels, ...], tmp_path: Path
):
    found = quantized(tmp_path / "student", trained, labels, FEW, 0)
    with pytest.raises(ModelError, match="no runtime here has activations of fewer than 8 bits"):
        export_quantized(tmp_path, WIDE, 1, 10, found)
    spoilt = dataclasses.replace(trained, weights=dataclasses.replace(trained.weights, sha256="0" * 64))
    with pytest.raises(IntegrityError):
        quantized(tmp_path / "spoilt", spoilt, labels, FEW, 0)


@pytest.mark.parametrize("kind", sorted({*TASKS} - {"generation"}))
def test_every_task_matches_what_the_teacher_gives_and_no_label(kind: str):
    task = cast("Any", SimpleNamespace(kind=kind, outputs=10))
    course = quantized_course(task, cast("Any", None), 8, 1, 0, batch=32)
    assert {tap for one in course.knowledge for tap in one.teacher} == {LOGITS}


def test_students_that_are_called_step_by_step_are_refused(trained: Checkpoint, tmp_path: Path):
    task = cast("Any", SimpleNamespace(kind="generation", outputs=10))
    with pytest.raises(UsageError, match="nothing is distilled quantised for generation"):
        quantized_course(task, cast("Any", None), 8, 1, 0, batch=32)
    stepwise = dataclasses.replace(WIDE, family="gru")
    with pytest.raises(ModelError, match="step by step"):
        distill_quantized(tmp_path, stepwise, digits(), trained, (), Scheme(), 32, 1, 0)
