"""torchrun starts the command line several times: one process leads, the others train with it and say nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgekd.distillation import parallel
from edgekd.errors import IntegrityError, WorkerDied
from edgekd.pipeline import company
from edgekd.values.codec import encode
from tests.distillation.test_parallel import torchrun
from tests.pipeline import rehearsed, trainings

JOB = """
[teacher]
model = "models.py:teacher"
[task]
data = "digits"
flip = false
[target]
runtimes = ["onnxruntime"]
[budget]
latency_ms = { p99 = 5.0 }
[distillation]
epochs = 2
short_epochs = 1
views = 1
losses = { ce = 1.0, dist = 1.0 }
"""

MODELS = """
import torch

def teacher():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


def job(folder: Path) -> Path:
    (folder / "models.py").write_text(MODELS, encoding="utf-8")
    (folder / "job.toml").write_text(JOB, encoding="utf-8")
    (folder / "student.json").write_text(encode(trainings.spec(8)), encoding="utf-8")
    return folder / "job.toml"


def test_two_processes_distill_one_student_and_one_of_them_talks(tmp_path: Path):
    done = torchrun(
        "edgekd",
        *("distill", str(job(tmp_path)), "--student", str(tmp_path / "student.json")),
        *("--out", str(tmp_path / "out"), "--json"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)  # one object: the other process printed nothing
    assert told["epochs"] == 2
    assert sorted(Path(name).name for name in told["files"]) == ["model.onnx", "weights.safetensors"]
    assert done.stderr.count("2 processes train each student together") == 1
    assert done.stderr.count("distilling residual @8") == 1


def test_a_leader_that_is_refused_ends_both(tmp_path: Path):
    path = job(tmp_path)
    path.write_text(JOB.replace('"digits"', '"nowhere.npz"'), encoding="utf-8")
    done = torchrun("edgekd", "distill", str(path), "--student", str(tmp_path / "student.json"))
    assert done.returncode
    assert done.stderr.count("error: [task] data = 'nowhere.npz' cannot be read") == 1
    assert "this is a fault in edgekd" not in done.stderr


@pytest.mark.parametrize(
    ("rank", "size", "expected"),
    [("1", "2", True), ("0", "2", False), ("0", "1", False), ("1", None, False)],
)
def test_the_environment_says_who_helps(
    monkeypatch: pytest.MonkeyPatch, rank: str, size: str | None, *, expected: bool
):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size:
        monkeypatch.setenv("WORLD_SIZE", size)
    assert company.helps() is expected


class Board:
    """Where orders are left, in this process; it is gone once it was read to its end."""

    def __init__(self, *orders: str) -> None:
        self._held = {f"order/{at}": text.encode() for at, text in enumerate(orders)}

    def check(self, keys: list[str]) -> bool:
        if keys[0] not in self._held:
            raise RuntimeError("Connection reset by peer")
        return True

    def get(self, key: str) -> bytes:
        return self._held[key]


def test_a_leader_that_is_gone_is_an_error_with_what_to_do():
    met = parallel.Meeting(parallel.Crew(rank=1, size=2), Board("first"))
    orders = met.orders()
    assert next(orders) == "first"
    with pytest.raises(WorkerDied, match="leads the training is gone") as caught:
        next(orders)
    assert "the same command again" in caught.value.mend
    assert caught.value.exit_code == 4


def test_a_helper_with_other_data_does_not_take_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    held = trainings.task(tmp_path)
    order = trainings.order(tmp_path, held, width=8, epochs=1)
    other = encode(order).replace(held.fingerprint, "0" * 64)

    @contextmanager
    def meeting() -> Iterator[parallel.Meeting]:
        yield parallel.Meeting(parallel.Crew(rank=1, size=2), Board(other, "end"))

    monkeypatch.setattr(parallel, "meeting", meeting)
    with pytest.raises(IntegrityError, match="not what the leading process trains on"):
        company.help_to_train(
            rehearsed.with_(rehearsed.JOB, task={"crop": 1}), beside=tmp_path, out=tmp_path / "out"
        )
