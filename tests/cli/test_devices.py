"""`edgekd devices` and its sub-commands hand over what they were given, and end with the right code."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from edgekd.cli import devices as verbs
from edgekd.cli.ending import ending
from edgekd.devices.hostkeys import HostKey
from edgekd.errors import UsageError
from edgekd.pipeline import boards, fleet
from edgekd.stages.doctor import Finding, Grade
from edgekd.stages.examine_board import BoardExamination
from edgekd.values.board import Board, Lease, Survey
from edgekd.values.conditions import Conditions, Hardware, Load, Software
from edgekd.values.fleet import (
    Added,
    Calibrated,
    CalibrationReport,
    Cleaned,
    Fleet,
    KnownBoard,
    KnownCalibration,
    KnownDevice,
    Leased,
    Probed,
    Resolution,
)
from edgekd.values.gate import Calibration, Clock
from edgekd.values.order import RuntimeHealth

CANARY = "hunter2-canary"
FINGERPRINT = f"SHA256:{'k' * 43}"
KEY = HostKey(name="[pi.local]:2222", kind="ssh-ed25519", blob="AAAA")
CALIBRATION = Calibration(
    fingerprint="ab" * 32,
    device="local",
    runtime="openvino",
    threads=1,
    reference="compute",
    decade=0,
    noise=0.0123,
    cpu_noise=0.0045,
    p50_ms=1.5,
    pair_seconds=2.5,
    pairs=40,
    date="2026-02-03T04:05:06+00:00",
)
EASY = Resolution(effect=0.05, margin=0.03, clock=Clock.WALL, pairs=14, minutes=0.8, within_reach=True)
HARD = Resolution(
    effect=0.01,
    margin=0.005,
    clock=Clock.CPU,
    pairs=1254,
    minutes=62.0,
    within_reach=False,
    honest_margin=0.02,
)
HOPELESS = replace(HARD, honest_margin=None)
REPORT = CalibrationReport(
    device="local",
    threads=1,
    history=Path("history.sqlite"),
    calibrated=(Calibrated(calibration=CALIBRATION, resolutions=(EASY, HARD, HOPELESS)),),
    problems=("onnxruntime was left out: [no] module",),
)
CONDITIONS = Conditions(
    hardware=Hardware(machine="x86_64", processor="a [fast] one", cores=2, memory_mib=8192, features=()),
    software=Software(
        system="Linux", kernel="6", python="3.11", runtimes={"openvino": "2026.1-x"}, governor="unknown"
    ),
    load=Load(load_average=0.1, others_percent=1.0, steal_percent=0.0, involuntary_switches=0),
)
FLEET = Fleet(
    devices=(KnownDevice(name="local", fingerprint="ab" * 32, conditions=CONDITIONS),),
    calibrations=(KnownCalibration(calibration=CALIBRATION, outdated="17 days old"),),
    history=Path("history.sqlite"),
)

LEASE = Lease(owner="ann@\x1b[31mhost", why="a [new] fan", expires_s=90.0)
SURVEY = Survey(
    boot_id="b",
    python="3.11.2",
    machine="aarch64",
    numpy="1.26.4",
    free_mib=20480,
    worker="",
    used_mib=0.0,
    lease=None,
)
BOARD = Board(
    name="pi",
    destination="user@pi.local",
    port=2222,
    fingerprint=FINGERPRINT,
    profile="raspberry-pi-5",
    machine="Cortex-A76, 4 cores, 7.9 GiB",
    conditions="cd" * 32,
    seen="2026-02-03T04:05:06+00:00",
)
WORKS = RuntimeHealth(name="onnxruntime", version="1.26.0", works=True, max_error=0.0)
ABSENT = RuntimeHealth(
    name="openvino", version="", works=False, problem="No module", mend="pip install openvino"
)
ADDED = Added(
    board=BOARD,
    key_kind="ssh-ed25519",
    survey=SURVEY,
    conditions=CONDITIONS,
    runtimes=(WORKS, ABSENT),
    problems=(),
)
PROBED = Probed(board=BOARD, survey=SURVEY, conditions=CONDITIONS, runtimes=(WORKS, ABSENT), changed=True)
EXAMINED = BoardExamination(
    device="pi",
    findings=(
        Finding(name="ssh", grade=Grade.GOOD, value="logs in"),
        Finding(name="disk", grade=Grade.WARNING, value="little [left]\x1b[2J", mend="free some"),
    ),
)
UNUSABLE = replace(
    EXAMINED, findings=(Finding(name="numpy", grade=Grade.BAD, value="absent", mend="install it"),)
)

Answer = tuple[int, str, str]


@pytest.fixture
def edgekd(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Answer]:
    """Run the verbs as the console script would; return exit code, stdout and stderr."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    app = typer.Typer(pretty_exceptions_enable=False)
    app.add_typer(verbs.app, name="devices")
    app.callback()(lambda: None)

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["edgekd", *arguments])
        with pytest.raises(SystemExit) as end, ending():
            app(prog_name="edgekd")
        streams = capsys.readouterr()
        return int(end.value.code or 0), streams.out, streams.err

    return run


def answering(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: object) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def answer(*given: object, **named: object) -> object:
        asked.update(named, given=given)
        if "agree" in named:
            asked["agreed"] = named["agree"](KEY)
        return value

    monkeypatch.setattr(module, name, answer)
    return asked


class Terminal(io.StringIO):
    """A person's answers."""

    def isatty(self) -> bool:
        return True


def test_devices_lists_what_can_be_reached_and_what_was_calibrated(
    edgekd: Any, monkeypatch: Any, tmp_path: Path
):
    asked = answering(monkeypatch, fleet, "list_devices", FLEET)
    code, out, _ = edgekd("devices")
    assert code == 0
    assert asked["history"] == tmp_path / "state" / "edgekd" / "history.sqlite"
    for part in (
        "a [fast] one",
        "openvino 2026.1",
        "abababababab",
        "1.23%",
        "0.45%",
        "2026-02-03",
        "17 days old",
    ):
        assert part in out
    data = json.loads(edgekd("devices", "--json", "--history", "other.sqlite")[1])
    assert asked["history"] == Path("other.sqlite")
    assert data["schema_version"] == 1
    assert data["calibrations"][0]["calibration"]["noise"] == 0.0123


def test_a_device_that_was_never_calibrated_is_told_how(edgekd: Any, monkeypatch: Any):
    answering(monkeypatch, fleet, "list_devices", replace(FLEET, calibrations=()))
    assert "edgekd devices calibrate" in edgekd("devices")[1]


def test_calibrate_hands_over_its_options_and_says_what_can_be_resolved(edgekd: Any, monkeypatch: Any):
    asked = answering(monkeypatch, fleet, "calibrate_devices", REPORT)
    code, out, _ = edgekd(
        "devices", "calibrate", "--runtime", "openvino", "--threads", "2", "--pairs", "60", "--history", "h.sqlite"
    )  # fmt: skip
    assert code == 0
    (target,) = asked["given"]
    assert (target.runtimes, target.threads) == (("openvino",), 2)
    assert (asked["pairs"], asked["history"], asked["chosen"]) == (60, Path("h.sqlite"), True)
    for part in (
        "+5 %",
        "3 %",
        "1,254",
        "an honest margin is 2 %, which shows +4 %",
        "quieter machine",
        "[no] module",
    ):
        assert part in out


def test_calibrate_as_json_is_one_object(edgekd: Any, monkeypatch: Any):
    asked = answering(monkeypatch, fleet, "calibrate_devices", REPORT)
    data = json.loads(edgekd("devices", "calibrate", "--json")[1])
    assert asked["chosen"] is False
    assert data["schema_version"] == 1
    (one,) = data["calibrated"]
    assert one["calibration"]["runtime"] == "openvino"
    assert [each["honest_margin"] for each in one["resolutions"]] == [None, 0.02, None]
    assert [each["within_reach"] for each in one["resolutions"]] == [True, False, False]


@pytest.mark.parametrize("given", ["", "relative/path"])
def test_the_history_is_in_the_home_folder_unless_the_environment_has_an_absolute_one(
    given: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", given)
    assert verbs.state_file() == tmp_path / ".local" / "state" / "edgekd" / "history.sqlite"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert verbs.state_file() == tmp_path / ".local" / "state" / "edgekd" / "history.sqlite"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert verbs.state_file() == tmp_path / "state" / "edgekd" / "history.sqlite"


def test_nobodys_home_is_an_error_that_says_what_to_give(monkeypatch: pytest.MonkeyPatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(homeless))
    with pytest.raises(UsageError) as caught:
        verbs.state_file()
    assert "--history" in caught.value.mend


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("calibrate", "--pairs", "9"), "10"),
        (("calibrate", "--runtime", "openvion"), "did you mean 'openvino'?"),
        (("--json", "calibrate"), "stand after it"),
        (("--profile", "x86-cup"), "did you mean 'x86-cpu'?"),
        (("add", "pi"), "ssh://"),
        (("add", "pi", "ssh://host"), "--fingerprint"),
        (("add", "local", "ssh://host", "--yes"), "stands for something else"),
        (("add", "Pi", "ssh://host", "--yes"), "a-z"),
        (("add", "pi", "ssh://-oProxyCommand=x", "--yes"), "ssh://user@host"),
        (("add", "pi", "ssh://host", "--yes", "--folder", "/"), "edgekd's own"),
        (("add", "pi", "ssh://host", "--yes", "--profile", "x86-cup"), "did you mean 'x86-cpu'?"),
        (("add", "pi", "ssh://host", "--fingerprint", "SHA256:short"), "ssh-keygen -lf"),
        (("lock",), "NAME"),
        (("lock", "pi", "--minutes", "0"), "0.1"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_mend(edgekd: Any, arguments: tuple[str, ...], word: str):
    code, out, err = edgekd("devices", *arguments)
    assert (code, out) == (2, "")
    assert word in " ".join(err.split())


@pytest.mark.parametrize("verb", ["probe", "doctor", "lock", "clean", "remove"])
def test_an_unknown_name_is_exit_code_four_and_says_how_to_add_one(edgekd: Any, verb: str):
    code, out, err = edgekd("devices", verb, "lcoal")
    assert (code, out) == (4, "")
    assert "did you mean 'local'?" in err
    assert "edgekd devices add" in err


@pytest.mark.parametrize(
    "destination", [f"ssh://user:{CANARY}@host", f"user:{CANARY}@host", f"ssh://user:{CANARY}@ho st:1"]
)
def test_a_password_in_a_destination_is_refused_and_stands_in_no_output(
    edgekd: Any, destination: str, tmp_path: Path
):
    code, out, err = edgekd("devices", "add", "pi", destination, "--yes", "-v")
    assert code == 2
    assert CANARY not in out + err
    assert not (tmp_path / "config").exists()


def test_add_hands_over_what_was_asked_for_and_says_what_comes_next(
    edgekd: Any, monkeypatch: Any, tmp_path: Path
):
    asked = answering(monkeypatch, boards, "add", ADDED)
    code, out, err = edgekd(
        "devices", "add", "pi", "ssh://user@pi.local:2222", "--python", "python3.11", "--folder", "/data/edgekd",
        "--fingerprint", FINGERPRINT,
    )  # fmt: skip
    assert code == 0
    (board,) = asked["given"]
    assert (board.name, board.destination, board.port) == ("pi", "user@pi.local", 2222)
    assert (board.python, board.folder, board.profile) == ("python3.11", "/data/edgekd", "")
    assert (asked["wanted"], asked["config"], asked["agreed"]) == (
        FINGERPRINT,
        tmp_path / "config/edgekd",
        True,
    )
    assert KEY.fingerprint in err
    for part in (
        FINGERPRINT,
        "3.11.2 on aarch64, numpy 1.26.4",
        "20.0 GiB",
        "raspberry-pi-5",
        "1.26.0 works",
    ):
        assert part in out
    assert "edgekd profile model.onnx --target pi" in out


def test_a_profile_is_remembered_by_its_name_or_by_its_whole_path(
    edgekd: Any, monkeypatch: Any, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text("")
    asked = answering(monkeypatch, boards, "add", ADDED)
    for given, remembered in (("mine.toml", str(tmp_path / "mine.toml")), ("x86-cpu", "x86-cpu")):
        edgekd("devices", "add", "pi", "ssh://h", "--yes", "--profile", given)
        assert asked["given"][0].profile == remembered


@pytest.mark.parametrize(("answer", "agreed"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_on_a_terminal_the_key_is_shown_once_and_asked_about(
    edgekd: Any, monkeypatch: Any, answer: str, *, agreed: bool
):
    asked = answering(monkeypatch, boards, "add", ADDED)
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    code, _, err = edgekd("devices", "add", "pi", "ssh://h")
    assert (code, asked["agreed"]) == (0, agreed)
    assert err.count(KEY.fingerprint) == 1


def test_what_keeps_a_board_from_being_used_is_told_when_it_is_added(edgekd: Any, monkeypatch: Any):
    answering(monkeypatch, boards, "add", replace(ADDED, problems=("numpy: absent; install [it]",)))
    out = edgekd("devices", "add", "pi", "ssh://h", "--yes")[1]
    assert "numpy: absent; install [it]" in out
    assert "edgekd devices doctor pi" in out


def test_the_list_has_the_boards_and_asks_them_only_where_that_is_wanted(edgekd: Any, monkeypatch: Any):
    silent = KnownBoard(board=replace(BOARD, name="far"), problem="no \x1b[31mroute")
    busy = KnownBoard(board=BOARD, survey=replace(SURVEY, lease=LEASE))
    asked = answering(monkeypatch, fleet, "list_devices", replace(FLEET, boards=(KnownBoard(board=BOARD),)))
    _, out, _ = edgekd("devices", "list")
    assert asked["reach"] is False
    for part in (
        "pi",
        "user@pi.local",
        "port 2222",
        "Cortex-A76",
        "raspberry-pi-5",
        "cdcdcdcdcdcd",
        "2026-02-03",
    ):
        assert part in " ".join(out.split())
    asked = answering(monkeypatch, fleet, "list_devices", replace(FLEET, boards=(busy, silent)))
    _, out, _ = edgekd("devices", "list", "--reach")
    assert asked["reach"] is True
    assert "held by ann@" in out
    assert "route" in out
    assert "\x1b[31m" not in out


def test_without_boards_the_list_says_how_to_add_one(edgekd: Any, monkeypatch: Any):
    answering(monkeypatch, fleet, "list_devices", FLEET)
    assert "edgekd devices add NAME" in edgekd("devices")[1]


def test_probe_says_what_changed_and_what_is_missing(edgekd: Any, monkeypatch: Any):
    asked = answering(monkeypatch, boards, "probe", replace(PROBED, profile_file=Path("new.toml")))
    code, out, _ = edgekd("devices", "probe", "pi", "--write-profile", "new.toml")
    assert (code, asked["given"], asked["profile_file"]) == (0, ("pi",), Path("new.toml"))
    for part in (
        "1.26.0 works",
        "absent",
        "pip install openvino",
        "not what it was",
        "profile written: new.toml",
    ):
        assert part in out


@pytest.mark.parametrize(("found", "expected"), [(EXAMINED, 0), (UNUSABLE, 4)])
def test_the_doctor_ends_with_four_where_nothing_can_be_measured(
    edgekd: Any, monkeypatch: Any, found: BoardExamination, expected: int
):
    answering(monkeypatch, boards, "doctor", found)
    code, out, _ = edgekd("devices", "doctor", "pi")
    assert code == expected
    for one in found.findings:
        assert one.name in out
        assert one.mend in out
    assert "\x1b[2J" not in out
    code, out, _ = edgekd("devices", "doctor", "pi", "--json")
    data = json.loads(out)
    assert (code, data["usable"], data["schema_version"]) == (expected, found.usable, 1)


def test_lock_and_release_say_who_has_the_board(edgekd: Any, monkeypatch: Any):
    asked = answering(monkeypatch, boards, "lock", Leased(device="pi", lease=LEASE))
    code, out, _ = edgekd("devices", "lock", "pi", "--minutes", "1.5", "--why", "a [new] fan")
    assert (code, asked["minutes"], asked["why"]) == (0, 1.5, "a [new] fan")
    assert "1.5 minutes: a [new] fan" in out
    assert "\x1b" not in out
    answering(monkeypatch, boards, "unlock", Leased(device="pi", lease=None))
    assert "pi is free" in edgekd("devices", "lock", "pi", "--release")[1]


def test_clean_and_remove_say_what_was_freed(edgekd: Any, monkeypatch: Any):
    answering(monkeypatch, boards, "clean", Cleaned(device="pi", freed_mib=12.34, forgotten=False))
    assert "pi is clean; 12.3 MiB" in edgekd("devices", "clean", "pi")[1]
    asked = answering(monkeypatch, boards, "remove", Cleaned(device="pi", freed_mib=None, forgotten=True))
    assert "pi is forgotten; its files were left" in edgekd("devices", "remove", "pi", "--keep-files")[1]
    assert asked["keep_files"] is True


@pytest.mark.parametrize(
    ("module", "name", "value", "arguments"),
    [
        (boards, "add", ADDED, ("add", "pi", "ssh://h", "--yes")),
        (boards, "probe", PROBED, ("probe", "pi")),
        (boards, "lock", Leased(device="pi", lease=LEASE), ("lock", "pi")),
        (boards, "clean", Cleaned(device="pi", freed_mib=1.0, forgotten=False), ("clean", "pi")),
        (boards, "remove", Cleaned(device="pi", freed_mib=1.0, forgotten=True), ("remove", "pi")),
        (fleet, "list_devices", FLEET, ("list",)),
    ],
)
def test_every_answer_is_one_json_object_with_a_version(
    edgekd: Any, monkeypatch: Any, module: Any, name: str, value: object, *, arguments: tuple[str, ...]
):
    answering(monkeypatch, module, name, value)
    code, out, _ = edgekd("devices", *arguments, "--json")
    data = json.loads(out)
    assert (code, data["schema_version"]) == (0, 1)
    assert data.get("device", "pi") == "pi"


@pytest.mark.parametrize(
    "verb", ["", "add", "list", "probe", "doctor", "lock", "clean", "remove", "calibrate"]
)
def test_every_sub_command_explains_itself(edgekd: Any, verb: str):
    code, out, _ = edgekd("devices", *([verb] if verb else []), "--help")
    assert code == 0
    assert "Usage" in out


def test_a_board_can_be_calibrated_by_its_name(edgekd: Any, monkeypatch: Any, tmp_path: Path):
    from edgekd.devices import registry

    registry.remember(tmp_path / "config" / "edgekd", replace(BOARD, profile="x86-cpu"))
    asked = answering(monkeypatch, fleet, "calibrate_devices", REPORT)
    edgekd("devices", "calibrate", "--target", "pi")
    assert asked["given"][0].device == "pi"


def test_no_help_of_a_sub_command_imports_anything_heavy():
    program = """
import sys
from edgekd.__main__ import main
for verb in ("add", "list", "probe", "doctor", "lock", "clean", "remove", "calibrate"):
    sys.argv = ["edgekd", "devices", verb, "--help"]
    try:
        main()
    except SystemExit as end:
        assert end.code == 0, verb
heavy = [name for name in ("torch", "numpy", "onnx", "onnxruntime", "openvino", "scipy") if name in sys.modules]
assert not heavy, heavy
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
