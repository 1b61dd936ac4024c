from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgekd.distillation import loop, teachers
from edgekd.distillation.arithmetic import Arithmetic
from edgekd.distillation.teachers import fingerprint_of, from_module
from edgekd.stages.distill import distill, distill_an_epoch, lesson_from
from edgekd.stages.label import label
from edgekd.store import Store
from edgekd.students import build
from edgekd.values.checkpoint import Labels
from edgekd.values.training import TrainingOrder
from tests.distillation.small import SPEC, digits, recipe

SCHEMES = ("offline", "online", "generations", "ema")


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loop, teachers):
        monkeypatch.setattr(module, "choose_arithmetic", lambda *_, **__: Arithmetic())


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Labels, ...]:
    torch.manual_seed(0)
    teacher = from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits())
    before = fingerprint_of(teacher.module)
    kept = (label(tmp_path_factory.mktemp("labels"), teacher, digits(), 0, recipe(losses={"kd": 1.0}), 0),)
    assert fingerprint_of(teacher.module) == before
    return kept


def test_every_scheme_ends_with_one_student_of_the_spec_from_the_same_labels(
    labels: tuple[Labels, ...], tmp_path: Path
):
    store, digests = Store(tmp_path), set()
    for scheme in SCHEMES:
        given = recipe(scheme=scheme, losses={"ce": 1.0, "kd": 1.0})
        kept = store.run(distill, SPEC, digits(), labels, given, 1, 0)
        student = build(SPEC, channels=1, classes=10)
        student.load_state_dict(load_file(kept.weights.verified()))
        assert kept.epochs == 1
        assert kept.images_per_second > 0
        digests.add(kept.weights.sha256)
        assert store.run(distill, SPEC, digits(), labels, given, 1, 0) == kept
    assert len(digests) == len(SCHEMES)
    assert all(
        artifact.verified() for artifact in labels[0].outputs.values()
    )  # what the teacher said is as it was


@pytest.mark.parametrize("scheme", ["online", "generations", "ema"])
def test_a_cluster_trains_what_this_machine_would(labels: tuple[Labels, ...], tmp_path: Path, scheme: str):
    task, given = digits(), recipe(scheme=scheme, losses={"ce": 1.0, "kd": 1.0})
    order = TrainingOrder(
        spec=SPEC, task=task.fingerprint, labels=labels, recipe=given, epochs=1, seed=0, folder=""
    )
    (tmp_path / "far").mkdir()
    targets = {0: dict(lesson_from(labels[0], task).targets)}
    assert distill_an_epoch(tmp_path / "far", order, task, targets).epoch == 1
    far = distill(tmp_path / "far", SPEC, task, labels, given, 1, 0)
    assert far.weights.sha256 == distill(tmp_path / "here", SPEC, task, labels, given, 1, 0).weights.sha256
