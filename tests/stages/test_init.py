from __future__ import annotations

import ast
from pathlib import Path

import pytest

from edgekd.errors import UsageError
from edgekd.stages.configure import configure
from edgekd.stages.init import Answers, init
from edgekd.values.job import Job


def job_of(folder: Path) -> Job:
    return configure(folder / "job.toml", (), {}, None).job


def test_what_init_writes_is_a_job(tmp_path: Path) -> None:
    written = init(tmp_path / "new", Answers())
    job = job_of(tmp_path / "new")
    assert all(path.is_file() for path in written.files)
    assert job.teacher.epochs > 0
    assert job.budget.latency_ms.speedup == 4.0
    assert not job.task.flip


def test_the_answers_are_in_the_job(tmp_path: Path) -> None:
    answers = Answers(data="my images/", teacher="nets.py:big", weights="w.safetensors", p99_ms=2)
    init(tmp_path, answers)
    job = job_of(tmp_path)
    assert (job.task.data, job.teacher.model, job.teacher.weights) == (
        "my images/",
        "nets.py:big",
        "w.safetensors",
    )
    assert job.budget.latency_ms.limits() == {"p99": 2.0}
    assert job.teacher.epochs == 0
    assert not (tmp_path / "models.py").exists()


@pytest.mark.parametrize("data", ['say "cheese"', "back\\slash", "new\nline", "\x7f", "ü/{x}", "'"])
def test_any_path_survives_the_quoting(tmp_path: Path, data: str) -> None:
    init(tmp_path, Answers(data=data))
    assert job_of(tmp_path).task.data == data


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="there already") as caught:
        init(tmp_path, Answers())
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["job.toml"]
    assert (tmp_path / "job.toml").read_text(encoding="utf-8") == "mine"


def test_a_file_of_teachers_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text("mine", encoding="utf-8")
    init(tmp_path, Answers())
    assert (tmp_path / "models.py").read_text(encoding="utf-8") == "mine"


def test_the_teacher_to_replace_is_a_function_that_the_job_names(tmp_path: Path) -> None:
    init(tmp_path, Answers())
    tree = ast.parse((tmp_path / "models.py").read_text(encoding="utf-8"))
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert job_of(tmp_path).teacher.model == f"models.py:{functions[0]}"
