from __future__ import annotations

from dataclasses import replace

import pytest

from edgekd.errors import BackendMissing, DeviceError
from edgekd.stages.doctor import Finding, Grade
from edgekd.stages.examine_board import BoardExamination, examine_board, shortcomings
from edgekd.values.board import Board, Lease, Survey
from edgekd.values.conditions import Conditions, Hardware, Load, Software
from edgekd.values.order import ProbeReply, RuntimeHealth

BOARD = Board(name="pi", destination="user@pi", fingerprint="SHA256:x")
SURVEY = Survey(
    boot_id="b",
    python="3.10.12",
    machine="aarch64",
    numpy="1.26.4",
    free_mib=8192,
    worker="",
    used_mib=1.5,
    lease=None,
)
CONDITIONS = Conditions(
    hardware=Hardware(machine="aarch64", processor="Cortex-A76", cores=4, memory_mib=8192, features=()),
    software=Software(system="Linux", kernel="6", python="3.10", runtimes={}, governor="performance"),
    load=Load(load_average=0.1, others_percent=1.0, steal_percent=0.0, involuntary_switches=0),
)
WORKS = RuntimeHealth(name="onnxruntime", version="1.26.0", works=True, max_error=1e-7)
ABSENT = RuntimeHealth(
    name="openvino", version="", works=False, problem="No module", mend="pip install openvino"
)
BROKEN = replace(ABSENT, version="2026.1", problem="Illegal instruction", mend="another wheel")


def examined(
    *health: RuntimeHealth,
    survey: Survey = SURVEY,
    conditions: Conditions = CONDITIONS,
    **given: tuple[str, ...],
) -> BoardExamination:
    return examine_board(BOARD, survey, ProbeReply(conditions=conditions, runtimes=health), **given)


def finding(found: BoardExamination, name: str) -> Finding:
    return next(one for one in found.findings if one.name == name)


def test_a_board_with_nothing_wrong_is_usable_and_each_thing_was_looked_at():
    found = examined(WORKS)
    assert found.usable
    assert {one.grade for one in found.findings} == {Grade.GOOD}
    names = [one.name for one in found.findings]
    for name in (
        "ssh",
        "host key",
        "Python",
        "numpy",
        "disk",
        "lease",
        "worker",
        "throttling",
        "onnxruntime",
    ):
        assert name in names


def test_what_a_board_says_of_itself_is_told_and_what_slows_it_is_a_warning():
    words = ("Jetson Orin Nano", "mode 15W", "slowed now: over-current", "not understood: NVENC 1")
    reply = ProbeReply(conditions=CONDITIONS, runtimes=(WORKS,), board=words)
    told = [one for one in examine_board(BOARD, SURVEY, reply).findings if one.name == "board"]
    assert [one.value for one in told] == list(words)
    assert [bool(one.mend) for one in told] == [False, False, True, True]
    assert [one.grade for one in told] == [Grade.GOOD, Grade.GOOD, Grade.WARNING, Grade.WARNING]


@pytest.mark.parametrize(("allowed", "lines"), [(True, 0), (False, 3), (None, 0)])
def test_whether_it_may_be_tuned_is_told_with_the_lines_that_are_missing_and_spoils_nothing(
    *, allowed: bool | None, lines: int
):
    reply = ProbeReply(conditions=CONDITIONS, runtimes=(WORKS,), may_tune=allowed)
    found = examine_board(BOARD, SURVEY, reply)
    assert found.usable
    assert len(found.sudoers) == lines
    assert all(line.startswith("user ALL=(root) NOPASSWD: ") for line in found.sudoers)
    told = [one for one in found.findings if one.name == "--tune"]
    assert [(one.grade, bool(one.mend)) for one in told] == [(Grade.GOOD, not allowed)] * (
        allowed is not None
    )
    aliased = examine_board(replace(BOARD, destination="orin"), SURVEY, reply)
    assert all(line.startswith("USER ALL=(root)") for line in aliased.sudoers)


def test_a_board_that_is_not_reached_has_that_as_its_only_finding():
    found = examine_board(BOARD, DeviceError("pi lets nobody in", cause="no key", mend="ssh-copy-id"), None)
    (one,) = found.findings
    assert not found.usable
    assert (one.value, one.mend) == ("pi lets nobody in: no key", "ssh-copy-id")


@pytest.mark.parametrize(
    ("changed", "name", "word"),
    [
        ({"python": "3.8.10"}, "Python", "3.10"),
        ({"python": "nonsense"}, "Python", "3.10"),
        ({"numpy": ""}, "numpy", "pip install numpy"),
        ({"free_mib": 10}, "disk", "devices clean pi"),
    ],
)
def test_what_keeps_a_worker_from_running_makes_a_board_unusable_and_is_told_with_its_mend(
    changed: dict[str, str | int], name: str, word: str
):
    survey = replace(SURVEY, **changed)
    found = examine_board(BOARD, survey, None)
    assert not found.usable
    assert word in finding(found, name).mend
    assert [one.name for one in shortcomings(BOARD, survey)] == [name]


@pytest.mark.parametrize(
    ("changed", "name", "word"),
    [
        ({"free_mib": 500}, "disk", "free 1 GiB"),
        ({"lease": Lease(owner="ann@host", why="", expires_s=9.0)}, "lease", "--release"),
    ],
)
def test_what_only_makes_measuring_harder_is_a_warning(changed: dict[str, int | Lease], name: str, word: str):
    survey = replace(SURVEY, **changed)
    found = examined(WORKS, survey=survey)
    assert found.usable
    assert finding(found, name).grade is Grade.WARNING
    assert word in finding(found, name).mend
    assert shortcomings(BOARD, survey) == ()


@pytest.mark.parametrize(
    ("off_s", "grade", "value"),
    [
        (3.0, Grade.GOOD, "in step"),
        (-7200.0, Grade.WARNING, "7,200 s behind this machine's"),
        (300.0, Grade.WARNING, "300 s ahead of this machine's"),
    ],
)
def test_a_clock_that_is_far_off_is_told(off_s: float, grade: Grade, value: str):
    one = finding(examine_board(BOARD, SURVEY, None, clock_off_s=off_s), "clock")
    assert (one.grade, one.value) == (grade, value)


def test_a_worker_that_does_not_start_makes_a_board_unusable():
    found = examine_board(BOARD, SURVEY, BackendMissing("no worker", cause="killed", mend="more memory"))
    assert finding(found, "worker").mend == "more memory"
    assert not found.usable


def test_without_a_runtime_that_works_a_board_is_unusable_and_each_mend_is_told():
    found = examined(ABSENT, BROKEN)
    assert not found.usable
    assert {one.mend for one in found.findings if one.grade is Grade.BAD} == {ABSENT.mend, BROKEN.mend}
    assert not examined().usable


def test_a_broken_runtime_beside_one_that_works_is_a_warning_and_an_absent_one_is_nothing():
    assert finding(examined(WORKS, BROKEN), "openvino").grade is Grade.WARNING
    assert "openvino" not in [one.name for one in examined(WORKS, ABSENT).findings]


def test_a_runtime_that_the_profile_counts_on_is_told_where_it_is_absent():
    assert finding(examined(WORKS, ABSENT, expected=("openvino",)), "openvino").mend == ABSENT.mend


def test_heat_and_throttling_are_told():
    hot = replace(CONDITIONS, load=replace(CONDITIONS.load, temperature_c=84.6, throttled=3))
    one = finding(examined(WORKS, conditions=hot), "throttling")
    assert one.grade is Grade.WARNING
    assert one.value == "85 °C; throttled 3 times"
