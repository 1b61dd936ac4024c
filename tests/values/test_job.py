from __future__ import annotations

from typing import Any

import pytest

from edgekd.errors import ConfigError
from edgekd.values.codec import decode
from edgekd.values.job import Job

LEAST = {
    "teacher": {"model": "models.py:f"},
    "task": {"data": "images/"},
    "budget": {"latency_ms": {"p99": 2.0}},
}


def test_the_least_job_is_a_teacher_its_data_and_a_limit() -> None:
    job = decode(Job, LEAST)
    assert job.target.device == "local"
    assert job.distillation.losses == {}  # the task's
    assert job.search.families == ()  # likewise


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("teacher", "epochs", -1),
        ("teacher", "learning_rate", 0.0),
        ("task", "kind", "clasification"),
        ("task", "validation", 1.0),
        ("task", "validation_from", "trian"),
        ("task", "crop", -1),
        ("task", "resolution", 0),
        ("task", "mean", [0.5]),
        ("target", "threads", 0),
        ("search", "trials", 0),
        ("search", "probes", 0),
        ("search", "probes", 2),
        ("search", "sampler", "optuna-tep"),
        ("search", "aim", "fronteir"),
        ("distillation", "batch", 0),
        ("distillation", "temperature", 0.0),
        ("distillation", "ema", 1.0),
        ("distillation", "mixup", -0.1),
        ("distillation", "losses", {"ce": -1.0, "dist": 1.0}),
        ("distillation", "losses", {"ce": 0.0}),
        ("distillation", "optimizer", "adam"),
        ("distillation", "scheme", "onlien"),
        ("distillation", "peers", 1),
        ("distillation", "generations", 0),
        ("distillation", "mutual", 0.0),
    ],
)
def test_a_value_that_cannot_work_is_refused_before_anything_runs(section: str, key: str, value: Any) -> None:
    data: dict[str, dict[str, Any]] = {name: dict(table) for name, table in LEAST.items()}
    data.setdefault(section, {})[key] = value
    with pytest.raises(ConfigError) as caught:
        decode(Job, data)
    assert caught.value.exit_code == 2
    words = f"{caught.value.what} {caught.value.mend}"
    assert key in words or str(value) in words


def test_a_student_cannot_agree_with_an_average_that_is_switched_off() -> None:
    with pytest.raises(ConfigError, match="needs averaged weights") as caught:
        decode(Job, {**LEAST, "distillation": {"scheme": "ema", "ema": 0.0}})
    assert "ema = 0.99" in caught.value.mend
    assert decode(Job, {**LEAST, "distillation": {"scheme": "ema"}}).distillation.scheme == "ema"


def test_means_and_deviations_come_a_value_a_channel() -> None:
    task = {"data": "x", "mean": [0.5, 0.5], "std": [0.5, 0.5]}
    with pytest.raises(ConfigError, match="1 or 3"):
        decode(Job, {**LEAST, "task": task})
    with pytest.raises(ConfigError, match="above 0"):
        decode(Job, {**LEAST, "task": {"data": "x", "mean": [0.5], "std": [0.0]}})
