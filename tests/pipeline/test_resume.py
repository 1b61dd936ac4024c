"""Stopped at any moment, the same command goes on where it was and comes to the same end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edgekd.values.trial import Trial, Verdict
from tests.pipeline.interrupted import KILLED
from tests.pipeline.test_loop import trials_in

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A folder in which runs were stopped until one came to its end."""

    out: Path
    codes: list[int]
    messages: str

    @property
    def trials(self) -> list[Trial]:
        """What was learnt, without how long it took and where files lie."""
        return [_timeless(trial) for trial in trials_in(self.out)]

    @property
    def files(self) -> dict[str, str]:
        """The digests of the shipped models, and of every trained student."""
        manifest = json.loads((self.out / "bundle" / "manifest.json").read_text(encoding="utf-8"))
        models = {name: digest for name, digest in manifest["files"].items() if name.endswith(".onnx")}
        for path in self.out.glob("store/distill/*/result.json"):
            kept = json.loads(path.read_text(encoding="utf-8"))
            models[path.parent.name] = kept["weights"]["sha256"]
        return models

    @property
    def leftovers(self) -> list[Path]:
        return list(self.out.rglob("*.partial"))


def _timeless(trial: Trial) -> Trial:
    """Leave out what differs between two runs of the same work: paths, wall time, the date of a measurement."""
    latency = trial.latency
    engine = trial.engine
    return replace(
        trial,
        seconds=0.0,
        device_seconds=0.0,
        latency=latency and replace(latency, trust=replace(latency.trust, reasons=())),
        engine=engine
        and replace(engine, model=replace(engine.model, file=replace(engine.model.file, path=Path()))),
    )


FAULTS = {
    "nothing": 1,
    "killed_in_a_write": 18,
    "killed_in_a_record": 2,
    "killed_in_a_step": 7,
    "disk_full_in_a_write": 25,
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Run the small job once for each fault, from one process that loaded everything before."""
    folder = tmp_path_factory.mktemp("resume")
    faults = [f"{name}:{at}" for name, at in FAULTS.items()]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.pipeline.interrupted", str(folder), *faults],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    codes = json.loads(done.stdout.splitlines()[-1])
    assert all(code[-1] == 0 for code in codes.values()), done.stderr[-3000:]
    return {name: Ended(out=folder / name, codes=codes[name], messages=done.stderr) for name in FAULTS}


@pytest.mark.parametrize("fault", ["killed_in_a_write", "killed_in_a_record", "killed_in_a_step"])
def test_a_killed_run_goes_on_to_the_same_student(fault: str, ended: dict[str, Ended]) -> None:
    killed, whole = ended[fault], ended["nothing"]
    assert len(killed.codes) > 2
    assert set(killed.codes[:-1]) == {KILLED}
    assert killed.files == whole.files
    assert killed.trials == whole.trials
    assert killed.leftovers == []


def test_a_full_disk_ends_with_7_and_the_run_goes_on_to_the_same_student(ended: dict[str, Ended]) -> None:
    full, whole = ended["disk_full_in_a_write"], ended["nothing"]
    assert set(full.codes[:-1]) == {7}
    assert "free some space and give the same command again" in full.messages
    assert full.files == whole.files
    assert full.trials == whole.trials
    assert full.leftovers == []


def test_no_student_is_tried_twice(ended: dict[str, Ended]) -> None:
    for one in ended.values():
        kinds = [(trial.proposal, trial.verdict is Verdict.MEASURED, trial.engine) for trial in one.trials]
        assert len(kinds) == len(set(map(repr, kinds)))
