"""A real sshd on loopback, with its own port, host key, user key and client configuration.

    with Sshd(tmp_path) as server:
        board = server.board()          # edgekd.values.board.Board, ready for SshDevice(board, target)

Everything lies under the folder it is given; nothing of the user's own SSH configuration is read. Tests that
use it carry the mark `needs_sshd`.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from edgekd.values.board import Board

PROGRAM = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:" + os.environ.get("PATH", ""))
needs_sshd = pytest.mark.skipif(PROGRAM is None, reason="openssh-server is not installed")

_START_S = 20.0
_PORTS = (20_000, 32_000)  # below net.ipv4.ip_local_port_range, wherever nobody has changed it
_SERVER = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/sshd.pid
AuthenticationMethods publickey
KbdInteractiveAuthentication no
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
MaxStartups 200
MaxSessions 100
LogLevel VERBOSE
"""
_CLIENT = """\
IdentityFile {folder}/user_key
IdentitiesOnly yes
IdentityAgent none
UserKnownHostsFile {folder}/user_known_hosts
GlobalKnownHostsFile /dev/null
"""


class Sshd:
    """A server in the foreground; a context manager that ends it and every session it has."""

    host = "127.0.0.1"

    def __init__(self, folder: Path) -> None:
        """Make keys and configuration in `folder` / "sshd"; nothing runs yet."""
        self.folder = folder / "sshd"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        self.user = getpass.getuser()
        self.known_hosts = self.folder / "known_hosts"  # where `board` says edgekd's own lie
        self.config = self.folder / "ssh_config"  # for ssh -F
        self._process: subprocess.Popen[bytes] | None = None
        _keygen(self.folder / "user_key")
        shutil.copyfile(self.folder / "user_key.pub", self.folder / "authorized_keys")
        self.new_host_key()
        self.known_hosts.write_text(self.known_line())
        (self.folder / "sshd_config").write_text(_SERVER.format(port=self.port, folder=self.folder))
        self.config.write_text(_CLIENT.format(folder=self.folder))

    def board(
        self,
        name: str = "board",
        *,
        folder: Path | str | None = None,
        python: str = sys.executable,
        known: bool = True,
    ) -> Board:
        """Return a board that is this machine behind this server, in a folder of its own."""
        return Board(
            name=name,
            destination=f"{self.user}@{self.host}",
            port=self.port,
            python=python,
            folder=str(folder or self.folder.parent / f"on-{name}"),
            known_hosts=self.known_hosts if known else None,
            fingerprint=self.fingerprint() if known else "",
            ssh_config=self.config,
        )

    def new_host_key(self) -> None:
        """Make another host key; a running server shows it after `restart`."""
        for old in self.folder.glob("host_key*"):
            old.unlink()
        _keygen(self.folder / "host_key")

    def known_line(self) -> str:
        """Return the line of a known_hosts file that fits the host key of now."""
        kind, key = (self.folder / "host_key.pub").read_text().split()[:2]
        return f"[{self.host}]:{self.port} {kind} {key}\n"

    def fingerprint(self) -> str:
        """Return the SHA256:... of the host key of now."""
        shown = subprocess.run(
            ["ssh-keygen", "-lf", str(self.folder / "host_key.pub")],
            capture_output=True,
            text=True,
            check=True,
        )
        return shown.stdout.split()[1]

    def start(self) -> None:
        """Listen."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's own separation of privileges
        config = ["-f", str(self.folder / "sshd_config")]
        assert PROGRAM is not None
        calm = ["-o", "PerSourcePenalties=no"]  # since 9.8: refused connections would be answered late
        tried = subprocess.run([PROGRAM, "-t", *config, *calm], capture_output=True, check=False)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "-D", "-e", *config, *(calm if tried.returncode == 0 else [])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._await_port()

    def stop(self) -> None:
        """End the server and every session."""
        if self._process is None:
            return
        for pid in [*self.sessions(), self._process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop and listen again at the same port."""
        self.stop()
        self.start()

    @property
    def pid(self) -> int:
        """The process that listens."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.folder / "sshd.log"

    def sessions(self) -> list[int]:
        """Return the processes of sshd that serve connections now, deepest last."""
        found: list[int] = []
        if self._process is not None:
            parents = [self._process.pid]
            while parents:
                parents = [pid for parent in parents for pid in _children(parent) if _is_sshd(pid)]
                found += parents
        return found

    def __enter__(self) -> Sshd:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _await_port(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1):
                return
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def _free_port() -> int:
    """Find a port that the kernel gives to no outgoing connection: one of those may be taken before sshd listens."""
    while True:
        port = random.randrange(*_PORTS)  # noqa: S311 - no secret
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _is_sshd(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().startswith("sshd")
    return False


def short_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder with a short path, for what takes no long one, such as a socket."""
    return tempfile.TemporaryDirectory(prefix="ek")
