"""What is wrong with a job is said whole: the thing, the cause and the mend, with its exit code and no traceback."""

from __future__ import annotations

import errno
import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekd.__main__ import main
from edgekd.errors import TrainingError
from edgekd.store import files
from tests.pipeline.rehearsed import float_profile

TEACHERS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.linear = nn.Linear(64, classes)
    def forward(self, images):
        return self.linear(images.flatten(1))

def three(): return Net()
def two(): return Net(2)
def broken(): raise ValueError("no such file of mine")
def infinite():
    net = Net()
    nn.init.constant_(net.linear.weight, float("nan"))
    return net
def not_a_net(): return 7
"""

JOB = """
[teacher]
model = "teachers.py:three"
[task]
data = "data.npz"
flip = false
[target]
profile = "float.toml"
[budget]
latency_ms = { p99 = 1.0 }
[search]
trials = 1
finalists = 1
probes = 3
families = ["residual"]
[distillation]
epochs = 1
short_epochs = 1
views = 1
"""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a command wrote, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def flat(self) -> str:
        """The error on one line."""
        return " ".join(self.err.split())


Command = Callable[..., Said]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder with a job, its data and its teachers, and stand in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "teachers.py").write_text(TEACHERS, encoding="utf-8")
    (tmp_path / "job.toml").write_text(JOB, encoding="utf-8")
    float_profile(tmp_path)
    save_data(tmp_path / "data.npz", np.arange(90) % 3)
    return tmp_path


@pytest.fixture
def command(folder: Path, here: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Give a function that runs an edgekd command in the folder."""

    def run(*words: str) -> Said:
        here.setattr("sys.argv", ["edgekd", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        code = ended.value.code
        said = Said(code=code if isinstance(code, int) else 0, out=captured.out, err=captured.err)
        assert "Traceback" not in said.err
        return said

    return run


def save_data(path: Path, labels: np.ndarray, images: np.ndarray | None = None) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (len(labels), 8, 8), dtype=np.uint8) if images is None else images
    np.savez(path, images=pixels, labels=labels)


def save_images(folder: Path, sides: dict[str, list[int]]) -> None:
    """Write a folder of images a class, with these sides."""
    for name, of_class in sides.items():
        (folder / name).mkdir(parents=True)
        for at, side in enumerate(of_class):
            pixels = np.random.default_rng(at).integers(0, 256, (side, side), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{at}.png")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["serach.trials=2"], ["serach", "search"]),
        (["search.trails=2"], ["trails", "did you mean", "trials"]),
        (["search.trials=many"], ["search.trials", "many", "whole number"]),
        (['search.families=["residul"]'], ["residul", "did you mean 'residual'"]),
        (['search.families=["mlp"]'], ["'mlp' does not serve classification", "residual"]),
        (["distillation.losses={dits=1.0}"], ["no loss 'dits'", "did you mean 'dist'"]),
        (['distillation.losses.at={student="stages.0",teacher="liner"}'], ["no module 'liner'", "did you mean 'linear'"]),
        (['distillation.losses.mse={student="stagse.0",teacher="linear"}'], ["'stagse.0'", "did you mean 'stages.0'"]),
        (['distillation.losses.at={student="stages.0",teacher="linear"}'], ["`at` cannot compare", "linear (3,)"]),
        (["distillation.losses.rrd=1.0"], ["does not serve classification", "it serves ranking"]),
        (["target.profile=rehersal"], ["rehersal", "did you mean 'rehearsal'"]),
        (['target.runtimes=["onnxruntime"]'], ["no runtime 'onnxruntime'", "rehearsal"]),
        (["task.data=nothing/"], ["nothing"]),
        (["teacher.model=teachers.py:tree"], ["no function 'tree'", "did you mean 'three'"]),
        (["teacher.model=absent.py:three"], ["there is no", "absent.py", "FILE.py:FUNCTION"]),
        (["teacher.model=teachers.py:two"], ["outputs do not fit", "3 classes", "one logit a class"]),
        (["teacher.model=teachers.py:broken"], ["broken()", "no such file of mine", "without arguments"]),
        (["teacher.model=teachers.py:not_a_net"], ["returned a int", "torch.nn.Module"]),
        (["teacher.model=teachers.py:infinite"], ["not finite", "NaN"]),
        (["teacher.weights=absent.safetensors"], ["absent.safetensors", "do not exist"]),
        (["task.resolution=4"], ["cannot take inputs of shape (1, 4, 4)", "[task] resolution"]),
        (["budget.latency_ms.p99=0"], ["p99", "above 0"]),
        (["budget.max_accuracy_drop=2"], ["max_accuracy_drop", "0.01"]),
    ],
)  # fmt: skip
def test_a_job_that_cannot_be_carried_out_ends_with_2(
    overrides: list[str], parts: list[str], command: Command, folder: Path
) -> None:
    said = command("run", "job.toml", *overrides)
    assert said.code == 2, said.err
    assert said.out == ""
    for part in parts:
        assert part in said.flat
    assert "timing untrained" not in said.flat  # it shows before the device is at work


@pytest.mark.parametrize("job", ["absent.toml", "digitz"])
def test_a_job_that_is_not_there_ends_with_2(job: str, command: Command) -> None:
    said = command("run", job)
    assert said.code == 2
    assert job in said.err


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        (np.zeros(60, np.int64), "class"),
        (np.arange(60) % 2 * 2, "class"),
        (np.array([], np.int64), "image"),
        (np.arange(60) % 3 - 1, "label"),
    ],
    ids=["one class", "an empty class", "no images", "a negative label"],
)
def test_data_that_cannot_be_learnt_from_ends_with_2(
    labels: np.ndarray, part: str, command: Command, folder: Path
) -> None:
    save_data(folder / "data.npz", labels)
    said = command("run", "job.toml")
    assert said.code == 2, said.err
    assert part in said.flat
    assert "data.npz" in said.flat


def test_a_broken_image_is_named(command: Command, folder: Path) -> None:
    save_images(folder / "images", {"a": [8] * 12, "b": [8] * 12})
    (folder / "images" / "b" / "5.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    said = command("run", "job.toml", "task.data=images/")
    assert said.code == 2, said.err
    assert "5.png" in said.flat


class Malice:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_weights_that_carry_a_pickle_are_refused_unrun(name: str, command: Command, folder: Path) -> None:
    canary = folder / "canary"
    (folder / name).write_bytes(pickle.dumps({"linear.weight": Malice(canary)}))
    said = command("run", "job.toml", f"teacher.weights={name}")
    assert said.code == 6, said.err
    assert name in said.flat
    assert not canary.exists()


def test_weights_that_are_no_state_dict_are_refused(command: Command, folder: Path) -> None:
    import torch

    torch.save([torch.zeros(3)], folder / "weights.pt")
    said = command("run", "job.toml", "teacher.weights=weights.pt")
    assert said.code == 6
    assert "not a state dict" in said.flat
    assert "torch.save(model.state_dict(), path)" in said.flat


def test_a_pickled_npz_is_refused_unrun(command: Command, folder: Path) -> None:
    canary = folder / "canary"
    np.savez(folder / "data.npz", images=np.array([Malice(canary)], dtype=object), labels=np.arange(1))
    said = command("run", "job.toml")
    assert said.code in (2, 6), said.err
    assert "data.npz" in said.flat
    assert not canary.exists()


def test_a_target_without_its_runtime_ends_with_4_and_says_what_to_install(
    command: Command, here: pytest.MonkeyPatch
) -> None:
    here.setitem(sys.modules, "edgekd.backends.rehearsal", None)
    said = command("run", "job.toml")
    assert said.code == 4, said.err
    assert "no runtime of rehearsal in fp32 works on local" in said.flat
    assert "pip install" in said.flat


def test_a_budget_that_nothing_meets_ends_with_1_and_what_would_admit_a_student(
    command: Command, folder: Path
) -> None:
    said = command("run", "job.toml", "budget.latency_ms.p99=0.001")
    assert said.code == 1, said.err
    assert "times the limit" in said.flat
    assert "to mend it: a limit for p99 of" in said.flat
    assert (folder / "runs" / "job" / "report.html").is_file()


def test_a_plan_out_of_reach_ends_with_1(command: Command) -> None:
    said = command("plan", "job.toml", "budget.latency_ms.p99=0.001", "--json")
    assert said.code == 1, said.err
    found = json.loads(said.out)
    assert found["reachable"] is False
    assert found["relaxations"]


def test_trainings_that_all_diverge_end_with_1_and_do_not_blame_the_budget(
    command: Command, here: pytest.MonkeyPatch
) -> None:
    from edgekd.pipeline import trials

    def diverge(*_: object) -> None:
        raise TrainingError("the training diverged in epoch 1", cause="the loss was not finite")

    here.setattr(trials, "distilled", diverge)
    said = command("run", "job.toml")
    assert said.code == 1, said.err
    assert "error: no student could be trained because: the training diverged in epoch 1" in said.flat
    assert "distillation.learning_rate" in said.flat


def test_a_full_disk_ends_with_7_and_the_same_command_goes_on(
    command: Command, here: pytest.MonkeyPatch, folder: Path
) -> None:
    real, calls = files._sync, []

    def full(path: Path) -> None:
        calls.append(path)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path)

    with here.context() as patch:
        patch.setattr(files, "_sync", full)
        said = command("run", "job.toml")
    assert said.code == 7, said.err
    assert "No space left" in said.flat
    assert "same command" in said.flat
    assert list((folder / "runs" / "job").rglob("*.partial")) == []


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07\x12\x00" * 99])
def test_profiling_what_is_no_model_ends_with_2(content: bytes, command: Command, folder: Path) -> None:
    (folder / "bad.onnx").write_bytes(content)
    said = command("profile", "bad.onnx", "--profile", "rehearsal")
    assert said.code == 2, said.err
    assert "bad.onnx" in said.flat
