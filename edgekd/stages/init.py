"""Write a commented job to start from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edgekd.errors import UsageError
from edgekd.store import write_text

_JOB = """\
# What edgekd is asked for. Every key, its default included: edgekd config show {file}
# Any value can be given on the command line: edgekd run {file} search.trials=4

[teacher]
model = {teacher}  # FILE.py:FUNCTION beside this file; the function returns a torch module
{weights}

[task]
kind = "classification"
data = {data}  # a folder with a folder of images a class, an .npz, or "digits"
{flip}

[target]
profile = "x86-cpu"           # a hardware profile by name, or the path of your own
device = "local"              # this machine, through a worker process of its own
# runtimes = ["openvino"]     # unless given, every runtime of the profile is tried
# threads = 1                 # of an inference; unless given, the profile's

[budget]
# Limits on what is measured on the compiled file: p50, p90, p95, p99 in ms, or a speed-up of p99 over the teacher.
latency_ms = {{ {latency} }}
max_accuracy_drop = 0.01      # below the teacher's: 0.01 is one point
# size_mb = 5.0               # of the model file
# memory_mb = 50.0            # growth of a fresh process until its first answer
# open_ms = 200.0             # from opening the file to that answer
# energy_mj = 5.0             # of an inference above the idle device, where that has a meter
# sustained_minutes = 10.0    # the latency limits hold after so long without a pause, too
# period_ms = 33.0            # and with one inference in so long, asleep in between
confidence = 0.95             # with which the measured percentile is below its limit

[search]
trials = 8                    # students distilled briefly; more of them find better ones
finalists = 2                 # of them, distilled fully

[distillation]
epochs = 20                   # of a finalist
short_epochs = 3              # of a trial
views = 8                     # augmented versions of each image, which the teacher labels once
"""

_MODELS = '''\
"""Teachers for edgekd: functions that return a torch module."""

from torch import nn


def teacher() -> nn.Module:
    """Take (N, channels, height, width), return logits (N, classes): put your own network here."""
    channels, classes = 1, 10  # of "digits"; 3 for colour images
    return nn.Sequential(
        nn.Conv2d(channels, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(),
        nn.Conv2d(128, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes),
    )
'''

_README = """\
# Next steps

1. `edgekd doctor` says which runtimes work on this machine.
2. `edgekd config show job.toml` says what the job holds, and where each value comes from.
3. `edgekd plan job.toml --out out` times a few untrained students: is the budget within reach? (about a minute)
4. `edgekd run job.toml --out out` does the rest. Stopped at any moment, the same command goes on where it was.
5. `out/report.html` shows what was tried; `python out/bundle/run.py --image some.png` runs what was accepted.
"""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a user says of the job to be."""

    data: str = "digits"
    teacher: str = "models.py:teacher"
    weights: str | None = None
    p99_ms: float | None = None  # None: a speed-up instead
    speedup: float = 4.0


@dataclass(frozen=True, kw_only=True)
class Initialised:
    """The files that were written."""

    files: tuple[Path, ...]
    schema_version: int = 1


def init(folder: Path, answers: Answers) -> Initialised:
    """Write `job.toml`, its next steps and, where none is named, a teacher to replace.

    Raises:
        UsageError: one of the files is there already.

    """
    texts = {"job.toml": _job(answers), "NEXT_STEPS.md": _README}
    if answers.teacher == Answers().teacher and not (folder / "models.py").exists():
        texts["models.py"] = _MODELS
    for name in texts:
        if (folder / name).exists():
            mend = "give another folder, or move it away"
            raise UsageError(f"{folder / name} is there already", cause="init does not overwrite", mend=mend)
    return Initialised(files=tuple(write_text(folder / name, text) for name, text in texts.items()))


def _job(answers: Answers) -> str:
    weights = "epochs = 10                   # of training before it teaches, since no weights are given"
    if answers.weights is not None:
        weights = f"weights = {_quoted(answers.weights)}  # .safetensors, or a state dict"
    limit = f"speedup = {answers.speedup}" if answers.p99_ms is None else f"p99 = {answers.p99_ms}"
    flip = "flip = false                  # a mirrored digit is no digit" if answers.data == "digits" else ""
    return _JOB.format(
        file="job.toml",
        teacher=_quoted(answers.teacher),
        weights=weights,
        data=_quoted(answers.data),
        flip=flip or "# flip = false                # where a mirrored image means something else",
        latency=limit,
    )


def _quoted(text: str) -> str:
    """Write a TOML basic string, which is JSON's but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
