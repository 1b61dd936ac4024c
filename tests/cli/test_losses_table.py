"""The catalogue of losses, as a person asks for it."""

from __future__ import annotations

from typer.testing import CliRunner

from edgekd.cli import app
from edgekd.cli.losses_table import losses
from edgekd.distillation.losses import LOSSES, catalogue


def test_every_loss_that_a_job_can_name_is_listed_and_no_other() -> None:
    printed = CliRunner().invoke(app, ["distill", "--losses"])
    assert printed.exit_code == 0
    listed = {line.split()[0] for line in printed.output.splitlines() if line.strip() and line[1] != " "}
    serving = {name for name, method in LOSSES.items() if "classification" in method.tasks}
    assert serving <= listed
    assert not (set(LOSSES) - serving) & listed


def test_a_tap_that_only_the_job_can_know_stands_among_the_settings() -> None:
    table = losses(tuple(one for one in catalogue() if one.name in {"at", "ofa", "rkd"}))
    settings = dict(zip(table.columns[0].cells, table.columns[-1].cells))
    assert "student = ..., teacher = ..." in settings["at"]
    assert "student = ..." in settings["ofa"]
    assert "teacher" not in settings["ofa"]
    assert "student" not in settings["rkd"]
