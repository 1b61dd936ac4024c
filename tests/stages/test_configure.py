from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.errors import ConfigError
from edgekd.stages import origins
from edgekd.stages.configure import (
    Configured,
    configure,
    job_digest,
    load_target,
    shipped,
    student_from,
)
from edgekd.values.codec import decode, plain
from edgekd.values.job import Job
from edgekd.values.student import StageSpec, StudentSpec

JOB = """
[teacher]
model = "models.py:teacher"
[task]
data = "images/"
[budget]
latency_ms = { speedup = 4.0 }
[search]
trials = 5
"""
SPEC = StudentSpec(
    family="residual", resolution=8, stem=8, stages=(StageSpec(width=8, depth=1, kernel=3, expansion=1.0),)
)


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(JOB, encoding="utf-8")
    return path


def read(
    job: Path | str, *overrides: str, environment: dict[str, str] | None = None, user: Path | None = None
) -> Configured:
    return configure(job, overrides, environment or {}, user)


def test_the_strongest_layer_wins_and_is_named(job_file: Path, tmp_path: Path) -> None:
    user = tmp_path / "user.toml"
    user.write_text("[search]\ntrials = 1\nfinalists = 1\nseed = 1\nprobes = 3\n", encoding="utf-8")
    environment = {"EDGEKD_SEARCH__SEED": "3", "EDGEKD_SEARCH__PROBES": "3", "HOME": "/"}
    found = read(job_file, "search.probes=4", environment=environment, user=user)
    search = found.job.search
    assert (search.finalists, search.trials, search.seed, search.probes) == (1, 5, 3, 4)
    assert found.origins["search.finalists"] == f"user file {user}"
    assert found.origins["search.trials"] == f"job {job_file}"
    assert found.origins["search.seed"] == "environment EDGEKD_SEARCH__SEED"
    assert found.origins["search.probes"] == "command line"
    assert found.origins["distillation.epochs"] == "default"
    assert (found.name, found.beside) == ("job", tmp_path)


def test_a_user_file_need_not_exist(job_file: Path, tmp_path: Path) -> None:
    assert read(job_file, user=tmp_path / "none.toml").job.search.trials == 5


def test_every_key_has_a_value_and_an_origin_in_the_order_of_the_sections(job_file: Path) -> None:
    settings = read(job_file, "distillation.losses.kl=2").settings()
    found = [setting.key for setting in settings]
    expected = [key for key in origins.known_keys() if key != "distillation.losses"]
    assert [key for key in found if not key.startswith("distillation.losses")] == expected
    losses = [(one.key, one.value, one.origin) for one in settings if "losses" in one.key]
    assert losses == [
        ("distillation.losses.ce", 1.0, "default"),
        ("distillation.losses.dist", 1.0, "default"),
        ("distillation.losses.kl", 2.0, "command line"),
    ]
    at = found.index("distillation.losses.ce")
    assert found[at - 1].startswith("search.")
    assert found[at + 3] == "distillation.temperature"


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("search.trials=7", "search", "trials", 7),
        ("task.data=digits", "task", "data", "digits"),
        ('task.data="digits"', "task", "data", "digits"),
        ("task.data=2024-01-02", "task", "data", "2024-01-02"),
        ("task.data=12", "task", "data", "12"),
        ("task.data=a=b", "task", "data", "a=b"),
        ("task.flip=false", "task", "flip", False),
        ("distillation.learning_rate=1e-3", "distillation", "learning_rate", 1e-3),
        ("distillation.learning_rate=1", "distillation", "learning_rate", 1.0),
        ("target.runtimes=openvino", "target", "runtimes", ("openvino",)),
        ("target.runtimes=openvino,onnxruntime", "target", "runtimes", ("openvino", "onnxruntime")),
        ("target.runtimes=[openvino, onnxruntime]", "target", "runtimes", ("openvino", "onnxruntime")),
        ('target.runtimes=["openvino"]', "target", "runtimes", ("openvino",)),
        ('target.runtimes="openvino"', "target", "runtimes", ("openvino",)),
        ("target.runtimes=[]", "target", "runtimes", ()),
        ("distillation.losses={ce=1.0}", "distillation", "losses", {"ce": 1.0}),
        ("distillation.losses.dist=3", "distillation", "losses", {"ce": 1.0, "dist": 3.0}),
        ("task={flip=false}", "task", "flip", False),
    ],
)
def test_an_override_is_read_as_what_its_key_holds(
    job_file: Path, override: str, section: str, name: str, value: Any
) -> None:
    assert getattr(getattr(read(job_file, override).job, section), name) == value


def test_a_mean_is_given_as_numbers(job_file: Path) -> None:
    task = read(job_file, "task.mean=0.5,0.5,0.5", "task.std=[0.2, 0.2, 0.2]").job.task
    assert (task.mean, task.std) == ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def test_a_job_that_gives_losses_replaces_the_default_ones(job_file: Path) -> None:
    job_file.write_text(JOB + "[distillation]\nlosses = { kl = 1.0 }\n", encoding="utf-8")
    assert read(job_file).job.distillation.losses == {"kl": 1.0}
    assert read(job_file, "distillation.losses.ce=1").job.distillation.losses == {"kl": 1.0, "ce": 1.0}


def test_a_percentile_on_the_command_line_replaces_the_jobs_speedup_and_the_reverse(job_file: Path) -> None:
    percentile = read(job_file, "budget.latency_ms.p99=1.5")
    assert percentile.job.budget.latency_ms.limits() == {"p99": 1.5}
    assert percentile.origins["budget.latency_ms.speedup"] == "default"
    job_file.write_text(JOB.replace("speedup = 4.0", "p50 = 1.0, p99 = 2.0"), encoding="utf-8")
    assert read(job_file, "budget.latency_ms.speedup=3").job.budget.latency_ms.speedup == 3.0
    assert read(job_file, "budget.latency_ms.p99=3").job.budget.latency_ms.limits() == {
        "p50": 1.0,
        "p99": 3.0,
    }


def test_both_on_one_command_line_are_refused(job_file: Path) -> None:
    with pytest.raises(ConfigError, match="one of the two"):
        read(job_file, "budget.latency_ms.p99=1", "budget.latency_ms.speedup=2")


@pytest.mark.parametrize(
    ("override", "what", "mend"),
    [
        ("serch.trials=1", "unknown key 'serch'", "did you mean 'search'?"),
        ("search.trails=1", "unknown key 'trails' in [search]", "did you mean 'trials'?"),
        ("budget.latency_ms.p9=1", "unknown key 'p9' in [budget.latency_ms]", "did you mean 'p99'?"),
        ("trials=1", "unknown key 'trials'", "did you mean search.trials?"),
        ("budget.trials=1", "unknown key 'trials' in [budget]", "did you mean search.trials?"),
        ("search.trials.x=1", "unknown key 'x' in [search.trials]", "search.trials=..."),
        ("search.trials=many", "search.trials must be a whole number", ""),
        ("task.flip=yes", "task.flip must be true or false", ""),
        ("distillation.ema=nan", "distillation.ema must be a finite number", ""),
        ("distillation.losses.kl=x", "distillation.losses.kl must be a number", ""),
        ("distillation.losses=x", "distillation.losses must be a table", ""),
        ("budget=3", "[budget] is a table", "budget.latency_ms.p50=..."),
        ("search.trials", "'search.trials' is not an override", "search.trials=4"),
    ],
)
def test_a_wrong_override_names_its_place_and_the_mend(
    job_file: Path, override: str, what: str, mend: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(job_file, override)
    assert what in caught.value.what
    assert mend in caught.value.mend


def test_a_wrong_value_says_who_gave_it(job_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(job_file, environment={"EDGEKD_SEARCH__TRIALS": "x"})
    assert "environment EDGEKD_SEARCH__TRIALS" in caught.value.cause
    job_file.write_text(JOB + "treils = 3\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read(job_file)
    assert str(job_file) in caught.value.cause


def test_variables_that_are_no_settings_are_left_alone(job_file: Path) -> None:
    assert read(job_file, environment={"EDGEKD_HOME": "/x", "OTHER__KEY": "1"}).job.search.trials == 5


def test_a_missing_section_and_a_missing_key_are_named(job_file: Path) -> None:
    job_file.write_text(JOB.replace('model = "models.py:teacher"', ""), encoding="utf-8")
    with pytest.raises(ConfigError, match="'model' is missing in \\[teacher\\]"):
        read(job_file)
    job_file.write_text(JOB.replace("latency_ms = { speedup = 4.0 }", ""), encoding="utf-8")
    with pytest.raises(ConfigError, match="'latency_ms' is missing in \\[budget\\]"):
        read(job_file)


def test_a_section_that_is_no_table_is_refused(job_file: Path) -> None:
    job_file.write_text(
        "search = 3\n" + JOB.replace("[search]", "[target]").replace("trials = 5", ""), "utf-8"
    )
    with pytest.raises(ConfigError, match="\\[search\\] must be a table"):
        read(job_file)


def test_broken_toml_is_refused_with_its_file_and_line(job_file: Path) -> None:
    job_file.write_text("[teacher]\nmodel = models.py\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read(job_file)
    assert str(job_file) in caught.value.what
    assert "line 2" in caught.value.cause
    assert "model = models.py" in caught.value.cause


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "job.toml"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        read(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read(tmp_path / "none.toml")


def test_the_shipped_job_is_found_by_name_and_valid() -> None:
    found = read("digits")
    assert found.name == "digits"
    assert found.job.task.data == "digits"
    assert (found.beside / found.job.teacher.model.split(":")[0]).is_file()
    assert load_target(found.job, found.beside).runtimes


def test_a_name_that_is_no_shipped_job_suggests_one() -> None:
    with pytest.raises(ConfigError) as caught:
        read("digist")
    assert "did you mean 'digits'?" in caught.value.mend


def test_a_file_of_that_name_comes_before_the_shipped_job(
    job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(job_file.parent)
    job_file.rename(job_file.parent / "digits")
    assert read("digits").job.task.data == "images/"


def test_paths_on_the_command_line_start_where_the_user_is(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "elsewhere"
    (here / "pictures").mkdir(parents=True)
    (here / "mine.py").write_text("", encoding="utf-8")
    monkeypatch.chdir(here)
    job = read(job_file, "task.data=pictures", "teacher.model=mine.py:net", "teacher.weights=none.pt").job
    assert job.task.data == str(here / "pictures")
    assert job.teacher.model == f"{here / 'mine.py'}:net"
    assert job.teacher.weights == "none.pt"
    assert read(job_file).job.task.data == "images/"


PROFILE = """
name = "board"
description = "a board"
threads = 3
[runtimes]
openvino = ["fp32", "int8"]
onnxruntime = ["fp32"]
"""


def test_a_target_is_a_profile_with_the_jobs_choices(job_file: Path, tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text(PROFILE, encoding="utf-8")
    target = load_target(read(job_file, "target.profile=board.toml").job, tmp_path)
    assert target.runtimes == ("openvino", "onnxruntime")
    assert (target.threads, target.device, target.profile.name) == (3, "local", "board")
    chosen = ("target.profile=board.toml", "target.runtimes=openvino", "target.threads=1")
    target = load_target(read(job_file, *chosen).job, tmp_path)
    assert (target.runtimes, target.threads) == (("openvino",), 1)


def test_a_runtime_that_the_profile_lacks_is_refused_with_the_nearest(job_file: Path, tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text(PROFILE, encoding="utf-8")
    job = read(job_file, "target.profile=board.toml", "target.runtimes=openvion").job
    with pytest.raises(ConfigError) as caught:
        load_target(job, tmp_path)
    assert "'openvion'" in caught.value.what
    assert "did you mean 'openvino'?" in caught.value.mend


def test_a_profile_is_read_strictly(job_file: Path, tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text(PROFILE.replace("threads", "treads"), encoding="utf-8")
    job = read(job_file, "target.profile=board.toml").job
    with pytest.raises(ConfigError) as caught:
        load_target(job, tmp_path)
    assert "'treads'" in caught.value.what
    assert "did you mean 'threads'?" in caught.value.mend


def test_an_unknown_profile_suggests_one(job_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_target(read(job_file, "target.profile=x86-cup").job, tmp_path)
    assert "did you mean 'x86-cpu'?" in caught.value.mend


def test_every_shipped_profile_and_job_is_valid() -> None:
    for path in sorted(shipped("hardware_profiles", "x86-cpu").parent.glob("*.toml")):
        found = read("digits", f"target.profile={path}")
        assert load_target(found.job, found.beside).profile.name
    for path in sorted(shipped("jobs", "digits").parent.glob("*.toml")):
        assert read(path).job


@pytest.mark.parametrize(
    "override", ["search.trials=99", "search.finalists=9", "task.data=x", "target.profile=y"]
)
def test_what_changes_no_trial_does_not_change_the_jobs_digest(job_file: Path, override: str) -> None:
    assert job_digest(read(job_file, override).job) == job_digest(read(job_file).job)


@pytest.mark.parametrize(
    "override", ["search.seed=9", "distillation.epochs=9", "budget.latency_ms.p99=9", "target.threads=2"]
)
def test_what_changes_a_trial_changes_the_jobs_digest(job_file: Path, override: str) -> None:
    assert job_digest(read(job_file, override).job) != job_digest(read(job_file).job)


@pytest.mark.parametrize("holder", ["{}", '{{"spec": {}}}', '{{"student": {{"spec": {}, "runtime": "x"}}}}'])
def test_a_student_is_read_from_a_spec_a_manifest_or_a_run(tmp_path: Path, holder: str) -> None:
    path = tmp_path / "student.json"
    path.write_text(holder.format(json.dumps(plain(SPEC))), encoding="utf-8")
    assert student_from(path) == SPEC


@pytest.mark.parametrize("text", ["", "[1]", '{"family": "residual"}'])
def test_what_holds_no_student_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "student.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"student\.json"):
        student_from(tmp_path / "student.json")


@settings(max_examples=25)
@given(
    trials=st.integers(1, 10**6),
    ema=st.floats(0, 0.999),
    families=st.lists(st.sampled_from("ab"), min_size=1),
)
def test_any_job_given_key_by_key_comes_back(trials: int, ema: float, families: list[str]) -> None:
    overrides = [
        f"search.trials={trials}",
        f"distillation.ema={ema!r}",
        f"search.families={','.join(families)}",
    ]
    job = read("digits", *overrides).job
    assert (job.search.trials, job.distillation.ema, job.search.families) == (trials, ema, tuple(families))
    assert decode(Job, plain(job)) == job
