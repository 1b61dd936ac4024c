"""What a pipeline makes of a device that has `trtexec`: it is named where it stands alone, and no search uses it."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from edgekd.errors import BackendMissing
from edgekd.pipeline import boards, workbench
from edgekd.timing.conditions import conditions
from edgekd.values.board import Board
from edgekd.values.conditions import Load
from edgekd.values.order import ProbeReply, RuntimeHealth
from tests.contracts.device import target

QUIET = Load(load_average=0.1, others_percent=1.0, steal_percent=0.0, involuntary_switches=0)


class Probed:
    """A device that only says what works on it."""

    def __init__(self, *working: str) -> None:
        names = ("onnxruntime", "tensorrt", "trtexec")
        health = [
            RuntimeHealth(name=name, version="1", works=name in working, problem="absent", mend=f"get {name}")
            for name in names
        ]
        self.reply = ProbeReply(conditions=conditions(QUIET), runtimes=tuple(health))

    def probe(self) -> ProbeReply:
        return self.reply


@pytest.mark.parametrize(
    ("working", "named"),
    [
        (("onnxruntime", "trtexec"), True),
        (("onnxruntime", "tensorrt", "trtexec"), False),
        (("onnxruntime",), False),
    ],
    ids=["alone", "beside the module", "absent"],
)
def test_a_board_has_trtexec_where_only_that_is_present(working: tuple[str, ...], *, named: bool):
    told = boards._told(Probed(*working).reply)
    assert ("trtexec" in [health.name for health in told.runtimes]) == named
    assert [health.name for health in told.runtimes][:2] == ["onnxruntime", "tensorrt"]


def test_a_board_is_asked_for_trtexec_too():
    asked = boards._everything(Board(name="pi", destination="pi", profile=""))
    assert asked.runtimes[-1] == "trtexec"
    assert "rehearsal" not in asked.runtimes


def test_a_search_leaves_trtexec_out_and_says_why(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        found = workbench._working(Probed("onnxruntime", "trtexec"), target("onnxruntime"))
    assert [health.name for health in found.runtimes if health.works] == ["onnxruntime"]
    assert "trtexec is left out of the search: it runs whole series on inputs" in caplog.text


def test_a_device_that_has_only_trtexec_cannot_be_searched_on():
    with pytest.raises(BackendMissing, match="shows no labels") as caught:
        workbench._working(Probed("trtexec"), replace(target("trtexec"), device="nano"))
    assert "get tensorrt" in caught.value.mend
