"""Losses in a job: a number is a weight, a table holds settings, and one setting of it can be given singly."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.errors import ConfigError
from edgekd.stages.configure import Configured, configure, job_digest
from edgekd.values.job import LossSection

JOB = """
[teacher]
model = "models.py:f"
[task]
data = "images/"
[budget]
latency_ms = { p99 = 2.0 }
"""
TABLES = """
[distillation]
losses = { ce = 0.5, at = { weight = 1000, student = "stages.2", teacher = ["layer3"] }, crd = {} }
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(JOB + TABLES, encoding="utf-8")
    return path


def read(path: Path, *overrides: str) -> Configured:
    return configure(path, overrides, environment={}, user_file=None)


def test_a_table_gives_what_it_names_and_leaves_the_rest_to_the_method(job_file: Path) -> None:
    losses = read(job_file).job.distillation.losses
    at = LossSection(weight=1000.0, student="stages.2", teacher=("layer3",))
    assert losses == {"ce": 0.5, "at": at, "crd": LossSection()}


def test_a_table_can_be_written_as_a_section(tmp_path: Path, job_file: Path) -> None:
    path = tmp_path / "sections.toml"
    path.write_text(
        JOB
        + '[distillation.losses]\nce = 0.5\n[distillation.losses.at]\nweight = 1000\nstudent = "stages.2"\n'
        + 'teacher = ["layer3"]\n[distillation.losses.crd]\n',
        encoding="utf-8",
    )
    assert read(path).job == read(job_file).job


@pytest.mark.parametrize(
    ("override", "name", "expected"),
    [
        (
            "distillation.losses.at.weight=5",
            "at",
            LossSection(weight=5.0, student="stages.2", teacher=("layer3",)),
        ),
        ("distillation.losses.ce.warm_up=0.5", "ce", LossSection(weight=0.5, warm_up=0.5)),
        ("distillation.losses.crd.negatives=64", "crd", LossSection(negatives=64)),
        ("distillation.losses.kd.temperature=4", "kd", LossSection(temperature=4.0)),
        ("distillation.losses.at=7", "at", 7.0),
        ("distillation.losses.kd={temperature=2.0}", "kd", LossSection(temperature=2.0)),
    ],
)
def test_one_setting_of_a_loss_joins_or_replaces_the_others(
    job_file: Path, override: str, name: str, expected: object
) -> None:
    losses = read(job_file, override).job.distillation.losses
    assert losses[name] == expected
    assert set(losses) >= {"ce", "at", "crd"}


def test_a_setting_joins_a_default_loss_that_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(JOB, encoding="utf-8")
    losses = read(path, "distillation.losses.dist.temperature=4").job.distillation.losses
    assert losses == {"ce": 1.0, "dist": LossSection(weight=1.0, temperature=4.0)}


def test_every_setting_that_is_given_is_shown_with_its_origin(job_file: Path) -> None:
    found = read(job_file, "distillation.losses.at.weight=5")
    shown = {one.key: (one.value, one.origin) for one in found.settings() if "losses" in one.key}
    assert shown["distillation.losses.at.weight"] == (5.0, "command line")
    assert shown["distillation.losses.at.student"] == ("stages.2", f"job {job_file}")
    assert "distillation.losses.at.temperature" not in shown
    keys = [one.key for one in found.settings()]
    assert keys.index("distillation.losses.at.weight") < keys.index("distillation.temperature")


@pytest.mark.parametrize(
    ("override", "what", "mend"),
    [
        ("distillation.losses.at.wieght=5", "unknown key 'wieght'", "did you mean 'weight'"),
        ("distillation.losses.at.weight=much", "must be a number", ""),
        ("distillation.losses.at.temperature.x=1", "unknown key 'x'", ""),
        ("distillation.balance=uncertain", "balance cannot be 'uncertain'", "did you mean 'uncertainty'"),
    ],
)
def test_a_wrong_setting_of_a_loss_names_the_one_meant(
    job_file: Path, override: str, what: str, mend: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(job_file, override)
    assert what in caught.value.what
    assert mend in caught.value.mend


def test_another_setting_is_another_job(job_file: Path) -> None:
    one, other = (read(job_file, f"distillation.losses.at.weight={at}").job for at in (5, 6))
    assert job_digest(one) != job_digest(other)


def test_only_classification_has_losses_before_its_data_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(JOB.replace("[task]", '[task]\nkind = "regression"'), encoding="utf-8")
    assert read(path).job.distillation.losses == {}
    assert read(path, "distillation.losses.mse=2").job.distillation.losses == {"mse": 2.0}
    assert read(path, "task.kind=classification").job.distillation.losses == {"ce": 1.0, "dist": 1.0}
