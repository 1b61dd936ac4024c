"""What one run measured is the next device's prior, through a file and back, and never its result."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgekd.cli import app
from edgekd.errors import DataError, IntegrityError
from edgekd.pipeline import sharing
from edgekd.students import draw, space_for
from edgekd.timing.conditions import conditions
from edgekd.values.conditions import Load, Trust, TrustVerdict
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Precision
from edgekd.values.trial import Proposal, Trial, Verdict

SPACE = space_for(resolution=16, channels=3, classes=10)
IDLE = conditions(Load(load_average=0.0, others_percent=0.0, steal_percent=0.0, involuntary_switches=0))


def trials(count: int) -> list[Trial]:
    specs = draw(SPACE, count, random.Random(0))[:count]  # noqa: S311
    samples = (0.5, 0.75, 1.0)
    latency = Latency(
        samples_ms=samples,
        cpu_ms=samples,
        protocol=Protocol(),
        conditions=IDLE,
        trust=Trust(verdict=TrustVerdict.GOOD),
    )
    return [
        Trial(
            proposal=Proposal(spec=spec, runtime="openvino", precision=Precision.INT8),
            verdict=Verdict.MEASURED,
            latency=latency,
        )
        for spec in specs
    ]


def test_what_a_run_measured_reaches_another_run(tmp_path: Path):
    sharing.keep(tmp_path / "one", trials(3), SPACE)
    out = sharing.export(tmp_path / "one", tmp_path / "file.jsonl")
    back = sharing.import_(tmp_path / "file.jsonl", tmp_path / "two")
    assert (out.measurements, out.devices, back.new) == (3, 1, 3)
    found = sharing.foreign(tmp_path / "two")
    assert {(one.spec, one.p50_ms) for one in found} == {(t.proposal.spec, 0.75) for t in trials(3)}
    assert sharing.import_(tmp_path / "file.jsonl", tmp_path / "two").new == 0


def test_what_was_imported_is_not_among_what_the_run_measured(tmp_path: Path):
    sharing.keep(tmp_path / "one", trials(2), SPACE)
    sharing.export(tmp_path / "one", tmp_path / "file.jsonl")
    sharing.import_(tmp_path / "file.jsonl", tmp_path / "two")
    assert not (tmp_path / "two" / sharing.OWN).exists()
    assert not (tmp_path / "two" / "trials.sqlite").exists()


def test_a_trial_that_was_not_timed_is_not_kept(tmp_path: Path):
    sharing.keep(tmp_path, [replace(trials(1)[0], latency=None, verdict=Verdict.UNBUILDABLE)], SPACE)
    with pytest.raises(DataError, match="no measurements"):
        sharing.export(tmp_path, tmp_path / "file.jsonl")


def test_a_tampered_file_brings_nothing_in(tmp_path: Path):
    sharing.keep(tmp_path / "one", trials(2), SPACE)
    sharing.export(tmp_path / "one", tmp_path / "file.jsonl")
    text = (tmp_path / "file.jsonl").read_text(encoding="utf-8")
    (tmp_path / "file.jsonl").write_text(text.replace("0.75", "0.25", 1), encoding="utf-8")
    with pytest.raises(IntegrityError, match="was changed"):
        sharing.import_(tmp_path / "file.jsonl", tmp_path / "two")
    assert sharing.foreign(tmp_path / "two") == ()


def test_the_command_line_exports_and_imports(tmp_path: Path):
    sharing.keep(tmp_path / "one", trials(2), SPACE)
    file, runner = str(tmp_path / "file.jsonl"), CliRunner()
    told = runner.invoke(app, ["cache", "export", file, "--out", str(tmp_path / "one"), "--json"])
    assert json.loads(told.stdout)["measurements"] == 2
    told = runner.invoke(app, ["cache", "import", file, "--out", str(tmp_path / "two")])
    assert told.exit_code == 0
    assert "2 measurements of 1 device read" in told.stdout
