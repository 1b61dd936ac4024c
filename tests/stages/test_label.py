from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.distillation import teachers
from edgekd.distillation.arithmetic import Arithmetic
from edgekd.distillation.teachers import fingerprint_of, from_module
from edgekd.distillation.views import batch_view, view_of
from edgekd.errors import TeacherError
from edgekd.stages.label import label
from edgekd.values.checkpoint import Labels
from edgekd.values.codec import decode, plain
from tests.distillation.small import digits, net, recipe


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "choose_arithmetic", lambda *_, **__: Arithmetic())


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_kept_outputs_are_the_teacher_s_on_the_same_view(tmp_path: Path, mixup: float):
    task, teacher = digits(), from_module(net(), digits())
    given = recipe(losses={"ce": 1.0, "pooled": 1.0}, mixup=mixup)
    labels = label(tmp_path, teacher, task, 3, given, 7)
    images, _ = batch_view(task, np.arange(len(task.train)), view_of(task, 3, seed=7, mixup=mixup), 8)
    with torch.inference_mode():
        expected = teacher.module(images).numpy()
    kept = np.load(labels.outputs["logits"].path, allow_pickle=False)
    np.testing.assert_allclose(kept, expected, rtol=2e-3, atol=2e-3)
    pooled = np.load(labels.outputs["pooled"].path, allow_pickle=False)
    head = teacher.module.head
    again = pooled.astype(np.float32) @ head.weight.numpy().T + head.bias.numpy()
    np.testing.assert_allclose(again, expected, rtol=1e-2, atol=1e-2)


def test_ten_classes_take_about_twenty_bytes_a_sample_and_view(tmp_path: Path):
    labels = label(tmp_path, from_module(net(), digits()), digits(), 0, recipe(), 0)
    assert list(labels.outputs) == ["logits"]
    assert labels.bytes_a_sample < 21


def test_the_teacher_is_not_changed(tmp_path: Path):
    teacher = from_module(net(), digits())
    before = fingerprint_of(teacher.module)
    label(tmp_path, teacher, digits(), 0, recipe(), 0)
    assert fingerprint_of(teacher.module) == before
    assert not any(weight.requires_grad or weight.grad is not None for weight in teacher.module.parameters())


def test_labels_are_made_again_bit_by_bit_and_survive_a_round_trip(tmp_path: Path):
    teacher = from_module(net(dropout=0.5), digits())
    first = label(tmp_path / "a", teacher, digits(), 1, recipe(), 0)
    second = label(tmp_path / "b", teacher, digits(), 1, recipe(), 0)
    assert first.outputs["logits"].sha256 == second.outputs["logits"].sha256
    assert decode(Labels, json.loads(json.dumps(plain(first)))) == first


def test_images_are_scaled_to_the_teacher_s_resolution(tmp_path: Path):
    larger = dataclasses.replace(digits(), resolution=16)
    teacher = from_module(net(), larger)
    assert teacher.resolution == 16
    assert label(tmp_path, teacher, larger, 0, recipe(), 0).samples == len(larger.train)


def test_outputs_that_are_not_finite_are_refused(tmp_path: Path):
    teacher = from_module(net(), digits())
    torch.nn.init.constant_(teacher.module.head.bias, torch.inf)
    with pytest.raises(TeacherError, match="not finite"):
        label(tmp_path, teacher, digits(), 0, recipe(), 0)
