from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.devices import hostkeys
from edgekd.devices.hostkeys import HostKey, host_key
from edgekd.errors import DeviceError, IntegrityError, UsageError
from edgekd.values.board import Board
from tests.devices.sshd import Sshd, needs_sshd

OTHER = f"SHA256:{'a' * 43}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path) as running:
        yield running


def stranger(server: Sshd) -> Board:
    """Give the server's board as it is before it was added."""
    return server.board(known=False)


def users_file(server: Sshd) -> Path:
    return server.folder / "user_known_hosts"


def keyed(folder: Path, kind: str) -> str:
    """Make a key; return its line of a known_hosts file without the name."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(folder / kind)], check=True)
    return " ".join((folder / f"{kind}.pub").read_text().split()[:2])


def second_host_key(server: Sshd, kind: str = "ecdsa") -> str:
    """Let the server have a key of another kind too."""
    line = keyed(server.folder, kind)
    with (server.folder / "sshd_config").open("a") as config:
        config.write(f"HostKey {server.folder / kind}\n")
    server.restart()
    return line


@needs_sshd
def test_a_key_is_fetched_without_any_key_of_the_users_being_offered(server: Sshd):
    (server.folder / "sshd_config").write_text(
        (server.folder / "sshd_config").read_text().replace("LogLevel VERBOSE", "LogLevel DEBUG2")
    )
    server.restart()
    found = host_key(stranger(server))
    assert found.fingerprint == server.fingerprint()
    assert f"{found.name} {found.kind} {found.blob}\n" == server.known_line()
    server.stop()
    said = server.log.read_text()
    assert "KEX done" in said  # it got that far, and
    for word in ("method publickey", "Accepted", "Postponed", "Failed publickey"):
        assert word not in said


@needs_sshd
def test_fetching_a_key_writes_nothing_into_the_users_file(server: Sshd):
    host_key(stranger(server))
    assert not users_file(server).exists()


@needs_sshd
def test_a_wanted_fingerprint_is_found_among_the_hosts_keys_of_every_kind(server: Sshd, tmp_path: Path):
    kind, blob = second_host_key(server).split()
    wanted = HostKey(name="", kind=kind, blob=blob).fingerprint
    assert host_key(stranger(server), wanted=wanted).kind == kind
    assert host_key(stranger(server), wanted=server.fingerprint()).kind == "ssh-ed25519"


@needs_sshd
def test_another_fingerprint_than_the_wanted_one_is_refused_and_both_are_shown(server: Sshd):
    with pytest.raises(IntegrityError) as caught:
        host_key(stranger(server), wanted=OTHER)
    assert OTHER in caught.value.cause
    assert server.fingerprint() in caught.value.cause


@pytest.mark.parametrize("text", ["SHA256:abc", "MD5:00:11", "a" * 43, f"{OTHER}=", f"{OTHER}\n"])
def test_what_is_no_fingerprint_is_refused_before_anything_is_reached(text: str):
    with pytest.raises(UsageError) as caught:
        host_key(Board(name="x", destination="nowhere.invalid"), wanted=text)
    assert "ssh-keygen -lf" in caught.value.mend


@needs_sshd
@pytest.mark.parametrize("hashed", [False, True])
def test_a_host_that_the_user_knows_by_another_key_is_refused(server: Sshd, tmp_path: Path, *, hashed: bool):
    users_file(server).write_text(f"[127.0.0.1]:{server.port} {keyed(tmp_path, 'ed25519')}\n")
    if hashed:
        subprocess.run(
            ["ssh-keygen", "-q", "-H", "-f", str(users_file(server))], check=True, capture_output=True
        )
    with pytest.raises(IntegrityError) as caught:
        host_key(stranger(server))
    assert str(users_file(server)) in caught.value.mend
    with pytest.raises(IntegrityError):  # not even with the fingerprint that it shows
        host_key(stranger(server), wanted=server.fingerprint())


@needs_sshd
def test_a_host_that_edgekd_knows_by_another_key_is_refused(server: Sshd, tmp_path: Path):
    own = tmp_path / "known_hosts"
    hostkeys.keep(own, host_key(stranger(server)), "pi")
    known = replace(stranger(server), known_hosts=own)
    assert host_key(known).fingerprint == server.fingerprint()
    server.new_host_key()
    server.restart()
    with pytest.raises(IntegrityError, match="another than the known one"):
        host_key(known)


@needs_sshd
def test_a_key_of_the_kind_that_the_user_knows_is_preferred(server: Sshd):
    line = second_host_key(server)
    users_file(server).write_text(f"[127.0.0.1]:{server.port} {line}\n")
    found = host_key(stranger(server))
    assert f"{found.kind} {found.blob}" == line


@needs_sshd
def test_a_host_that_no_longer_has_a_key_of_the_known_kind_is_refused(server: Sshd, tmp_path: Path):
    users_file(server).write_text(f"[127.0.0.1]:{server.port} {keyed(tmp_path, 'ecdsa')}\n")
    with pytest.raises(IntegrityError):
        host_key(stranger(server))


@needs_sshd
def test_a_revoked_key_is_refused(server: Sshd):
    users_file(server).write_text(f"@revoked * {server.known_line().split(' ', 1)[1]}")
    with pytest.raises(IntegrityError) as caught:
        host_key(stranger(server))
    assert "revoked" in caught.value.cause


@needs_sshd
def test_the_name_that_the_users_configuration_gives_a_host_is_the_one_that_is_written_down(server: Sshd):
    with server.config.open("a") as config:
        config.write(f"Host lab\n  HostName 127.0.0.1\n  Port {server.port}\n  HostKeyAlias lab-board\n")
    found = host_key(Board(name="x", destination="lab", ssh_config=server.config))
    assert (found.name, found.fingerprint) == ("lab-board", server.fingerprint())


@needs_sshd
def test_a_host_behind_a_jump_host_is_reached_through_it(server: Sshd):
    users_file(server).write_text(server.known_line())  # a jump host must be known
    with server.config.open("a") as config:
        config.write(
            f"Host far\n  HostName 127.0.0.1\n  Port {server.port}\n  HostKeyAlias far\n  ProxyJump hop\n"
            f"Host hop\n  HostName 127.0.0.1\n  Port {server.port}\n  User {server.user}\n"
        )
    found = host_key(Board(name="x", destination="far", ssh_config=server.config))
    assert (found.name, found.fingerprint) == ("far", server.fingerprint())
    assert server.log.read_text().count("Accepted publickey") == 1  # by the jump host


@needs_sshd
def test_a_host_that_does_not_answer_is_named_with_what_ssh_said(server: Sshd):
    server.stop()
    with pytest.raises(DeviceError) as caught:
        host_key(stranger(server))
    assert "Connection refused" in caught.value.cause
    assert f"-p {server.port}" in caught.value.mend


def test_a_machine_without_ssh_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError) as caught:
        host_key(Board(name="x", destination="nowhere.invalid"))
    assert "openssh-client" in caught.value.mend


def test_each_board_has_its_own_line_and_only_that_is_dropped(tmp_path: Path):
    file = tmp_path / "known_hosts"
    key = HostKey(name="host", kind="ssh-ed25519", blob="AAAA")
    hostkeys.keep(file, key, "a")
    hostkeys.keep(file, key, "b")
    hostkeys.keep(file, replace(key, blob="BBBB"), "a")
    assert file.stat().st_mode & 0o777 == 0o600
    assert [line.split()[2] for line in file.read_text().splitlines()] == ["AAAA", "BBBB"]
    hostkeys.drop(file, "a")
    hostkeys.drop(file, "never")
    assert file.read_text() == "host ssh-ed25519 AAAA edgekd:b\n"
    hostkeys.drop(tmp_path / "none" / "known_hosts", "a")
    assert not (tmp_path / "none").exists()


def test_what_another_machine_says_is_one_short_line_without_control_characters():
    said = hostkeys.printable("\x1b[31mred\n\x07  \u202eback\tnul\x00" + "x" * 1000)
    assert said.isprintable()
    assert len(said) <= 300
