from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.devices import connect, registry
from edgekd.errors import ConfigError, DeviceError, IntegrityError, UsageError
from edgekd.values.board import Board
from edgekd.values.model import Precision
from edgekd.values.target import Profile, Target

PI = Board(name="pi", destination="user@pi.local", port=2222, profile="raspberry-pi-5")
CANARY = "hunter2-canary"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def written(folder: Path, text: str) -> Path:
    path = folder / "devices.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_what_is_remembered_is_read_again_with_edgekds_own_known_hosts_beside_it(tmp_path: Path):
    folder = tmp_path / "config"
    registry.remember(folder, PI)
    assert registry.boards(folder) == {"pi": replace(PI, known_hosts=folder / "known_hosts")}


def test_a_board_of_the_same_name_is_replaced_and_another_is_left_alone(tmp_path: Path):
    other = replace(PI, name="other")
    for one in (PI, other, replace(PI, port=None)):
        registry.remember(tmp_path, one)
    assert [one.port for one in registry.boards(tmp_path).values()] == [2222, None]
    registry.forget(tmp_path, "other")
    registry.forget(tmp_path, "never-there")
    assert list(registry.boards(tmp_path)) == ["pi"]


def test_nobody_else_can_read_the_file_or_its_folder_whatever_the_umask(tmp_path: Path):
    folder = tmp_path / "config"
    before = os.umask(0)
    try:
        registry.remember(folder, PI)
    finally:
        os.umask(before)
    assert (mode(folder), mode(folder / "devices.toml")) == (0o700, 0o600)


def test_a_folder_that_others_could_read_is_closed_when_it_is_written_in(tmp_path: Path):
    tmp_path.chmod(0o755)
    registry.remember(tmp_path, PI)
    assert mode(tmp_path) == 0o700


def test_without_a_file_there_are_no_boards_and_none_is_made(tmp_path: Path):
    assert registry.boards(tmp_path / "none") == {}
    assert not (tmp_path / "none").exists()


@given(text=st.text(max_size=20))
def test_every_text_that_can_be_remembered_comes_back_as_it_was(
    text: str, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("config")
    board = replace(PI, profile=text, python=f"/opt/{text}/python3")
    try:
        registry.remember(folder, board)
    except UsageError:
        assert not text.isprintable() or not (folder / "devices.toml").exists()
    else:
        assert registry.boards(folder)["pi"] == replace(board, known_hosts=folder / "known_hosts")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[pi]\ndestination = "a@b"\nport 22\n', ("line 3", "devices.toml")),
        ('[pi]\ndestinatoin = "a@b"\n', ("did you mean 'destination'?", "[pi]")),
        ('[pi]\ndestination = "a@b"\nport = "22"\n', ("a whole number", "devices.toml")),
        ("[pi]\nport = 22\n", ("'destination' is missing", "[pi]")),
        ('pi = "a@b"\n', ("is not a board",)),
        ('[pi]\ndestination = "-oProxyCommand=touch x"\n', ("[pi]", "not that of an SSH host")),
        ('["p i"]\ndestination = "a@b"\n', ("cannot be a device's name",)),
        ('[pi]\ndestination = "a@b"\nknown_hosts = "/tmp/mine"\n', ("'known_hosts' cannot be given",)),
        ('[pi]\ndestination = "a@b"\nfolder = "/home/me"\n', ("not edgekd's own",)),
        ('[pi]\ndestination = "a@b"\npython = "-c"\n', ("--python",)),
    ],
)
def test_a_broken_file_is_an_error_that_says_where_and_what_mends_it(
    tmp_path: Path, text: str, words: tuple[str, ...]
):
    written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        registry.boards(tmp_path)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.mend


def test_bytes_that_are_no_text_are_an_error_too(tmp_path: Path):
    written(tmp_path, "").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        registry.boards(tmp_path)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path):
    registry.remember(tmp_path, PI)
    (tmp_path / "devices.toml").chmod(0o622)
    with pytest.raises(IntegrityError) as caught:
        registry.boards(tmp_path)
    assert "chmod 600" in caught.value.mend


def test_a_broken_file_is_never_written_over(tmp_path: Path):
    path = written(tmp_path, "not toml")
    with pytest.raises(ConfigError):
        registry.remember(tmp_path, PI)
    assert path.read_text() == "not toml"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssh://user@host", ("user@host", None)),
        ("ssh://user@host:2222", ("user@host", 2222)),
        ("ssh://host/", ("host", None)),
        ("ssh://my-alias_1", ("my-alias_1", None)),
        ("ssh://user@[::1]:22", ("user@::1", 22)),
        ("ssh://domain\\user@10.0.0.7", ("domain\\user@10.0.0.7", None)),
        ("user@host", ("user@host", None)),
        ("alias", ("alias", None)),
        ("fe80::1", ("fe80::1", None)),
    ],
)
def test_a_destination_is_read_as_it_is_written(text: str, expected: tuple[str, int | None]):
    assert registry.destination_from(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "ssh://", "-oProxyCommand=x", "ssh://-oProxyCommand=x", "ssh://-l@host", "ssh://user@-host", "user@-x",
        "ssh://a b", "ssh://host\n", "ho\x1bst", "ssh://host:port", "ssh://host:0", "ssh://host:70000",
        "http://host", "ssh://user@host/path", "ssh://ho$(st)", "a@b@c", "ssh://us;er@host", "hôte",
        "ssh://user@host?x", "host:22", "ssh://host:22:22",
    ],
)  # fmt: skip
def test_what_is_no_destination_is_refused_and_what_it_should_be_is_told(text: str):
    with pytest.raises(UsageError) as caught:
        registry.destination_from(text)
    assert caught.value.mend


@pytest.mark.parametrize(
    "text",
    [
        f"ssh://user:{CANARY}@host", f"user:{CANARY}@host", f"ssh://user:{CANARY}@host:22/x",
        f"ssh://user:{CANARY}@@host", f"ssh://:{CANARY}@host", f"sftp://user:{CANARY}@host",
        f"ssh://host?password={CANARY}",
    ],
)  # fmt: skip
def test_a_password_is_refused_and_never_repeated(text: str):
    with pytest.raises(UsageError) as caught:
        registry.new_board("pi", text)
    assert CANARY not in repr(caught.value) + str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "Pi", "a b", "-a", "a-", "a" * 41, "local", "cassette", "a.b", "ä", "../x"]
)
def test_a_name_is_short_plain_and_stands_for_nothing_else(name: str):
    with pytest.raises(UsageError, match="cannot be a device's name"):
        registry.new_board(name, "ssh://host")


@pytest.mark.parametrize(
    "folder", ["/", "~", "~/edgekd/..", ".", "/home/me", "../edgekd/..", "~root/edgekd", "-edgekd"]
)
def test_a_folder_that_is_not_edgekds_own_is_refused_for_clean_removes_it(folder: str):
    with pytest.raises(UsageError):
        registry.new_board("pi", "ssh://host", folder=folder)


def test_a_relative_ssh_configuration_is_remembered_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert registry.new_board("pi", "ssh://host", ssh_config=Path("conf")).ssh_config == tmp_path / "conf"


def test_an_unknown_name_suggests_the_known_one_and_how_to_add_another(tmp_path: Path):
    registry.remember(tmp_path, PI)
    with pytest.raises(DeviceError) as caught:
        registry.known_board(tmp_path, "pii")
    assert "did you mean 'pi'?" in caught.value.mend
    assert "edgekd devices add" in caught.value.mend


@pytest.mark.parametrize("given", ["", "relative/path"])
def test_the_folder_of_settings_is_in_the_home_folder_unless_the_environment_has_an_absolute_one(
    given: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", given)
    assert registry.config_folder() == tmp_path / ".config" / "edgekd"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    assert registry.config_folder() == tmp_path / "settings" / "edgekd"


def test_nobodys_home_is_an_error_that_says_what_to_set(monkeypatch: pytest.MonkeyPatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(homeless))
    with pytest.raises(UsageError) as caught:
        registry.config_folder()
    assert "XDG_CONFIG_HOME" in caught.value.mend


def test_a_target_names_this_machine_or_a_board_that_was_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from edgekd.devices.local import LocalDevice
    from edgekd.devices.ssh import SshDevice

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    registry.remember(tmp_path / "edgekd", PI)
    profile = Profile(name="x", description="", runtimes={"onnxruntime": (Precision.FP32,)})
    target = Target(profile=profile, device="local", runtimes=("onnxruntime",), threads=1)
    assert isinstance(connect(target), LocalDevice)
    assert isinstance(connect(replace(target, device="pi")), SshDevice)
    with pytest.raises(DeviceError, match="no device is called 'nano'"):
        connect(replace(target, device="nano"))
