from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgekd.distillation import checkpoints
from edgekd.distillation.teachers import Teacher, fingerprint_of, from_module, load_teacher, with_weights
from edgekd.errors import BackendMissing, IntegrityError, TeacherError
from edgekd.stages.export import export_module
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.codec import fingerprint
from edgekd.values.job import OtherTeacher, TeacherSection
from tests.distillation.small import digits, net

MODELS = """
from torch import nn
from layers import head

def small():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), head(144, 10))

def two():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

def pair():
    class Pair(nn.Module):
        def forward(self, images):
            return images, images
    return Pair()

def coloured():
    return nn.Conv2d(3, 10, 8)

def broken():
    raise RuntimeError("no such luck")

def asks(classes):
    return nn.Linear(classes, classes)

def nothing():
    return None
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "layers.py").write_text("from torch import nn\nhead = nn.Linear\n")
    yield tmp_path
    sys.modules.pop("layers", None)


def load(job: Path, model: str = "models.py:small", weights: str | None = None) -> Teacher:
    return load_teacher(TeacherSection(model=model, weights=weights), beside=job, task=digits())


def checkpoint(path: Path, module: nn.Module) -> Checkpoint:
    weights = checkpoints.save_module(path, module)
    return Checkpoint(
        weights=weights, accuracy=0.5, epochs=1, seconds=1.0, images_per_second=1.0, losses=(1.0,)
    )


def test_a_teacher_is_frozen_and_answers_the_same_twice(job: Path):
    teacher = load(job)
    images = torch.randn(4, 1, 8, 8)
    assert not any(weight.requires_grad for weight in teacher.module.parameters())
    assert torch.equal(teacher.module(images), teacher.module(images))
    assert teacher.resolution == 8


def test_the_fingerprint_is_of_weights_architecture_and_source(job: Path):
    first = load(job)
    assert load(job).fingerprint == first.fingerprint
    assert fingerprint([first]) == fingerprint([load(job)])
    other = with_weights(
        first, checkpoint(job / "w.safetensors", nn.Sequential(*load(job).module).apply(_bump))
    )
    assert other.fingerprint != first.fingerprint
    assert fingerprint_of(first.module) == fingerprint_of(load(job).module)
    (job / "models.py").write_text(MODELS + "# changed\n")
    assert load(job).fingerprint != first.fingerprint


def _bump(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.ones_(module.bias)


def test_a_live_module_is_copied():
    module = net()
    teacher = from_module(module, digits())
    assert all(weight.requires_grad for weight in module.parameters())
    assert module.training
    nn.init.zeros_(module.head.weight)
    assert teacher.module.head.weight.abs().sum() > 0
    with pytest.raises(TeacherError, match="is a int"):
        from_module(3, digits())


@pytest.mark.parametrize("name", ["plain.pt", "wrapped.pt", "wrapped.th", "plain.safetensors"])
def test_weights_are_read_from_every_form(job: Path, name: str):
    state = {f"module.{name}": value + 1 for name, value in load(job).module.state_dict().items()}
    path = job / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if path.stem == "wrapped" else state, path)
    teacher = load(job, weights=path.name)
    for key, value in teacher.module.state_dict().items():
        assert torch.equal(value, state[f"module.{key}"])


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "writer",
    [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))],
)
def test_weights_that_carry_code_are_refused_and_nothing_of_them_runs(job: Path, writer: object):
    canary = job / "canary"
    writer({"state_dict": {"0.weight": Canary(canary)}}, job / "evil.pt")
    with pytest.raises(IntegrityError) as caught:
        load(job, weights="evil.pt")
    assert caught.value.exit_code == 6
    assert "safetensors" in caught.value.mend
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all", pickle.dumps([1, 2])])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_are_no_state_dict_are_refused(job: Path, content: bytes, suffix: str):
    (job / f"w{suffix}").write_bytes(content)
    with pytest.raises(IntegrityError):
        load(job, weights=f"w{suffix}")


def test_weights_of_another_network_name_some_keys(job: Path):
    torch.save(net().state_dict(), job / "w.pt")
    with pytest.raises(TeacherError, match=r"missing: 0\.weight, .*unexpected: body\.0\.weight") as caught:
        load(job, weights="w.pt")
    assert caught.value.exit_code == 2
    state = load(job).module.state_dict()
    torch.save({**state, "4.weight": torch.zeros(9, 144)}, job / "w.pt")
    with pytest.raises(TeacherError, match=r"size mismatch for 4\.weight"):
        load(job, weights="w.pt")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("models.py:smal", "did you mean 'small'"),
        ("nowhere.py:small", "there is no"),
        ("resnet56", "is not understood"),
        ("teacher.onnx", "does not exist"),
        ("models.py:two", "do not fit the task"),
        ("models.py:pair", "do not fit the task"),
        ("models.py:coloured", "cannot take inputs of shape"),
        ("models.py:broken", "no such luck"),
        ("models.py:asks", "without arguments"),
        ("models.py:nothing", "returned a NoneType"),
        ("bad.py:small", "cannot be imported: SyntaxError"),
    ],
)
def test_teachers_that_cannot_serve_are_refused(job: Path, model: str, words: str):
    (job / "bad.py").write_text("def (")
    with pytest.raises(TeacherError, match=words) as caught:
        load(job, model)
    assert caught.value.exit_code == 2


def test_missing_weights_and_weights_that_are_not_finite_are_refused(job: Path):
    with pytest.raises(TeacherError, match="do not exist"):
        load(job, weights="none.pt")
    state = load(job).module.state_dict()
    torch.save({**state, "4.bias": torch.full((10,), torch.nan)}, job / "w.pt")
    with pytest.raises(TeacherError, match="not finite"):
        load(job, weights="w.pt")


def test_a_missing_timm_says_what_to_install(job: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BackendMissing) as caught:
        load(job, "timm:resnet18")
    assert "pip install edgekd[timm]" in caught.value.mend


def test_given_weights_leave_the_first_teacher_as_it_is(job: Path):
    teacher = load(job)
    before = fingerprint_of(teacher.module)
    kept = checkpoint(job / "w.safetensors", nn.Sequential(*load(job).module).apply(_bump))
    better = with_weights(teacher, kept)
    assert torch.equal(better.module[4].bias, torch.ones(10))
    assert fingerprint_of(teacher.module) == before
    kept.weights.path.write_bytes(b"spoiled")
    with pytest.raises(IntegrityError):
        with_weights(teacher, kept)


def test_a_teacher_may_be_an_onnx_file(job: Path):
    module = load(job).module
    export_module(job, module, {"images": (1, 1, 8, 8)}).file.path.rename(job / "teacher.onnx")
    teacher = load(job, "teacher.onnx")
    given = torch.from_numpy(digits().prepare(digits().test.samples[:5], 8))
    torch.testing.assert_close(teacher.module(given), module(given), rtol=1e-4, atol=1e-4)
    assert teacher.fingerprint != load(job).fingerprint
    with pytest.raises(TeacherError, match="cannot be trained here"):
        load_teacher(TeacherSection(model="teacher.onnx", epochs=1), beside=job, task=digits())


def test_several_teachers_answer_as_one_each_with_its_own_view_of_the_pixels(job: Path):
    others = (OtherTeacher(model="models.py:small", weight=3.0, mean=(0.5,), std=(0.5,)),)
    task = digits()
    teacher = load_teacher(TeacherSection(model="models.py:small", others=others), beside=job, task=task)
    alone = load(job).module
    pixels = torch.from_numpy(task.test.samples[:6].transpose(0, 3, 1, 2) / 255.0).float()
    given = torch.from_numpy(task.prepare(task.test.samples[:6], 8))
    wanted = 0.25 * alone(given).softmax(1) + 0.75 * alone((pixels - 0.5) / 0.5).softmax(1)
    torch.testing.assert_close(teacher.module(given).softmax(1), wanted, rtol=1e-4, atol=1e-5)
    assert not teacher.module.training


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (OtherTeacher(model="models.py:two"), "do not fit the task"),
        (OtherTeacher(model="models.py:small", mean=(0.5,) * 3, std=(0.5,) * 3), "has 3 values"),
    ],
)
def test_another_teacher_that_does_not_fit_is_refused(job: Path, other: OtherTeacher, words: str):
    section = TeacherSection(model="models.py:small", others=(other,))
    with pytest.raises(TeacherError, match=words):
        load_teacher(section, beside=job, task=digits())
