"""A board from `devices add` to `devices remove`, behind a real sshd, through the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekd.__main__ import main
from edgekd.cli.options import target_from_options
from edgekd.devices import registry
from edgekd.devices.link_command import forget_master
from edgekd.pipeline import single
from edgekd.stages.configure import configure, load_target
from edgekd.values.board import Board
from edgekd.values.latency import Protocol
from tests.contracts import models
from tests.devices.sshd import Sshd, needs_sshd

pytestmark = needs_sshd

Run = Callable[..., tuple[int, Any, str]]
OTHER = f"SHA256:{'a' * 43}"
CANARY = "hunter2-canary"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path) as running:
        yield running


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "config" / "edgekd"
    yield folder
    for board in registry.boards(folder).values():
        forget_master(board)


@pytest.fixture
def edgekd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: Path) -> Run:
    """Run a verb with --json; return exit code, the object and stderr."""

    def run(*arguments: str) -> tuple[int, Any, str]:
        monkeypatch.setattr(sys, "argv", ["edgekd", *arguments, "--json"])
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        streams = capsys.readouterr()
        return code, json.loads(streams.out or "null"), streams.err

    return run


def adding(server: Sshd, tmp_path: Path, *more: str, name: str = "pi") -> tuple[str, ...]:
    where = f"ssh://{server.user}@{server.host}:{server.port}"
    folder = str(tmp_path / f"edgekd-on-{name}")
    return (
        "devices", "add", name, where, "--python", sys.executable, "--folder", folder,
        "--ssh-config", str(server.config), *more,
    )  # fmt: skip


def _job(folder: Path, target: str) -> Path:
    job = folder / "job.toml"
    parts = ('[teacher]\nmodel = "a.onnx"', '[task]\nkind = "classification"\ndata = "digits"')
    job.write_text("\n".join((*parts, "[budget]\nlatency_ms = { p99 = 1.0 }", f"[target]\n{target}")))
    return job


def test_two_commands_lead_from_a_board_to_a_latency_and_one_takes_everything_back(
    server: Sshd, tmp_path: Path, config: Path, edgekd: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(single, "PROFILING", Protocol(launches=1, blocks=2, samples=20, warmup_ms=0.1))
    model = models.conv_net(tmp_path / "model.onnx")
    code, added, err = edgekd(*adding(server, tmp_path, "--fingerprint", server.fingerprint()))
    assert code == 0, err
    assert (added["board"]["fingerprint"], added["key_kind"]) == (server.fingerprint(), "ssh-ed25519")
    assert {"onnxruntime", "openvino"} <= {one["name"] for one in added["runtimes"] if one["works"]}
    assert added["board"]["profile"].startswith("x86-cpu")
    code, profiled, err = edgekd("profile", str(model), "--target", "pi", "--runtime", "onnxruntime")
    assert code == 0, err
    assert profiled["latency_ms"]["p50"] > 0
    assert profiled["conditions"]["hardware"] == added["conditions"]["hardware"]

    code, listed, _ = edgekd("devices", "list", "--reach")
    (one,) = listed["boards"]
    assert (code, one["board"]["name"], one["problem"]) == (0, "pi", "")
    assert one["survey"]["worker"]
    board = tmp_path / "edgekd-on-pi"
    assert board.is_dir()
    code, removed, _ = edgekd("devices", "remove", "pi")
    assert (code, removed["forgotten"]) == (0, True)
    assert removed["freed_mib"] > 0
    assert not board.exists()
    assert registry.boards(config) == {}
    assert (config / "known_hosts").read_text() == ""


def test_lock_keeps_a_board_until_it_is_released_and_clean_empties_it(
    server: Sshd, tmp_path: Path, config: Path, edgekd: Run
):
    registry.remember(config, server.board("pi", folder=tmp_path / "edgekd"))
    (config / "known_hosts").write_text(server.known_line())
    code, locked, err = edgekd("devices", "lock", "pi", "--minutes", "2", "--why", "new fan")
    assert (code, locked["lease"]["why"]) == (0, "new fan"), err
    assert 0 < locked["lease"]["expires_s"] <= 120
    code, listed, err = edgekd("devices", "list", "--reach")
    assert code == 0, err
    assert listed["boards"][0]["survey"]["lease"]["owner"] == locked["lease"]["owner"]
    assert edgekd("devices", "lock", "pi", "--release")[1]["lease"] is None
    assert edgekd("devices", "list", "--reach")[1]["boards"][0]["survey"]["lease"] is None
    code, cleaned, _ = edgekd("devices", "clean", "pi")
    assert (code, cleaned["forgotten"]) == (0, False)
    assert not (tmp_path / "edgekd").exists()
    assert list(registry.boards(config)) == ["pi"]


def test_probe_writes_a_profile_that_the_board_is_measured_by_and_the_doctor_finds_nothing_wrong(
    server: Sshd, tmp_path: Path, config: Path, edgekd: Run, monkeypatch: pytest.MonkeyPatch
):
    registry.remember(config, server.board("pi", folder=tmp_path / "edgekd"))
    (config / "known_hosts").write_text(server.known_line())
    file = tmp_path / "profiles" / "mine.toml"
    code, probed, err = edgekd("devices", "probe", "pi", "--write-profile", str(file))
    assert (code, probed["profile_file"], probed["changed"]) == (0, str(file), False), err
    assert 'onnxruntime = ["fp32"' in file.read_text()
    board = registry.boards(config)["pi"]
    assert (board.profile, len(board.conditions)) == (str(file), 64)
    assert edgekd("devices", "probe", "pi")[1]["changed"] is False
    held = configure(_job(tmp_path, f'device = "pi"\nprofile = "{file}"'), (), {}, None)
    assert load_target(held.job, held.beside) == target_from_options(None, None, None, "pi")
    monkeypatch.setattr(single, "PROFILING", Protocol(launches=1, blocks=2, samples=20, warmup_ms=0.1))
    code, profiled, err = edgekd("profile", str(models.conv_net(tmp_path / "m.onnx")), "--target", "pi")
    assert code == 0, err
    listed = target_from_options(None, None, None, "pi").profile.runtimes
    floats = {(name, one.value) for name, held in listed.items() for one in held if one.value != "int8"}
    assert {(one["runtime"], one["precision"]) for one in profiled["results"]} == floats
    assert all(one["latency_ms"]["p50"] > 0 for one in profiled["results"])
    assert edgekd("devices", "probe", "pi", "--write-profile", str(file))[0] == 2  # it exists
    code, examined, _ = edgekd("devices", "doctor", "pi")
    assert (code, examined["usable"]) == (0, True)


def test_another_host_key_is_refused_with_six_by_everything_that_reaches_a_board(
    server: Sshd, tmp_path: Path, config: Path, edgekd: Run
):
    assert edgekd(*adding(server, tmp_path, "--yes"))[0] == 0
    forget_master(registry.boards(config)["pi"])
    server.new_host_key()
    server.restart()
    logins = server.log.read_text().count("Accepted")
    model = models.conv_net(tmp_path / "model.onnx")
    for arguments in (
        ("devices", "probe", "pi"), ("devices", "doctor", "pi"), ("devices", "lock", "pi"),
        ("devices", "clean", "pi"), ("profile", str(model), "--target", "pi"),
    ):  # fmt: skip
        code, out, err = edgekd(*arguments)
        assert (code, out) == (6, None), (arguments, err)
    code, _, err = edgekd(*adding(server, tmp_path, "--yes", name="again"))
    assert code == 6
    assert "ssh-keygen -R" in err
    code, _, err = edgekd("devices", "remove", "pi")
    assert (code, "--keep-files" in err) == (6, True)
    assert server.log.read_text().count("Accepted") == logins
    assert list(registry.boards(config)) == ["pi"]
    assert edgekd("devices", "remove", "pi", "--keep-files")[0] == 0
    assert edgekd(*adding(server, tmp_path, "--yes"))[0] == 0  # and with its new key it is known again


def test_a_fingerprint_that_is_another_is_refused_before_anybody_logs_in(
    server: Sshd, tmp_path: Path, config: Path, edgekd: Run
):
    code, out, err = edgekd(*adding(server, tmp_path, "--fingerprint", OTHER))
    assert (code, out) == (6, None)
    assert server.fingerprint() in err
    assert not config.exists()
    assert "Accepted" not in server.log.read_text()


def test_a_board_that_lets_nobody_in_is_not_written_down(
    server: Sshd, tmp_path: Path, config: Path, edgekd: Run
):
    (server.folder / "authorized_keys").write_text("")
    code, out, err = edgekd(*adding(server, tmp_path, "--yes"))
    assert (code, out) == (4, None)
    assert "to mend it" in err
    assert not config.exists()


def test_a_board_that_does_not_answer_is_listed_as_such_examined_as_unusable_and_can_be_forgotten(
    server: Sshd, tmp_path: Path, config: Path, edgekd: Run
):
    registry.remember(config, server.board("pi", folder=tmp_path / "edgekd"))
    server.stop()
    code, listed, _ = edgekd("devices", "list", "--reach")
    assert (code, listed["boards"][0]["survey"]) == (0, None)
    assert listed["boards"][0]["problem"]
    code, examined, _ = edgekd("devices", "doctor", "pi")
    assert (code, examined["usable"]) == (4, False)
    code, _, err = edgekd("devices", "remove", "pi")
    assert code == 4
    assert "--keep-files" in err
    assert edgekd("devices", "remove", "pi", "--keep-files")[0] == 0
    assert registry.boards(config) == {}


def test_a_name_that_is_taken_is_refused(server: Sshd, tmp_path: Path, config: Path, edgekd: Run):
    registry.remember(config, server.board("pi", folder=tmp_path / "edgekd"))
    code, _, err = edgekd(*adding(server, tmp_path, "--yes"))
    assert code == 2
    assert "edgekd devices remove pi" in err


@pytest.mark.parametrize(
    ("lines", "overrides", "expected"),
    [
        ('device = "pi"', (), ("x86-cpu-vnni", "device pi")),
        ("", ("target.device=pi",), ("x86-cpu-vnni", "device pi")),
        ('profile = "x86-cpu"', ("target.device=pi",), ("x86-cpu-vnni", "device pi")),
        ('device = "pi"\nprofile = "x86-cpu"', (), ("x86-cpu", "job")),
        ('device = "pi"', ("target.profile=x86-cpu",), ("x86-cpu", "command line")),
        ('profile = "x86-cpu-vnni"', (), ("x86-cpu-vnni", "job")),
    ],
)
def test_a_device_brings_its_profile_along_unless_one_is_given_beside_it(
    lines: str, overrides: tuple[str, ...], expected: tuple[str, str], tmp_path: Path, config: Path
):
    registry.remember(config, Board(name="pi", destination="pi", profile="x86-cpu-vnni"))
    found = configure(_job(tmp_path, lines), overrides, {}, None)
    assert found.job.target.profile == expected[0]
    assert found.origins["target.profile"].startswith(expected[1])


def test_a_job_for_an_unknown_device_is_exit_code_four_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Path, edgekd: Run
):
    monkeypatch.chdir(tmp_path)
    registry.remember(config, Board(name="pi", destination="pi", profile="x86-cpu"))
    for verb in ("run", "plan"):
        code, out, err = edgekd(verb, "digits", "--target", "pii")
        assert (code, out) == (4, None)
        assert "did you mean 'pi'?" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config"]


def test_a_board_without_a_profile_says_how_to_get_one(tmp_path: Path, config: Path, edgekd: Run):
    registry.remember(config, Board(name="pi", destination="pi"))
    code, _, err = edgekd("profile", "model.onnx", "--target", "pi")
    assert code == 2
    assert "edgekd devices probe pi --write-profile pi.toml" in err
