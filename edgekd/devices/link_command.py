"""The command line of ssh: the user's own configuration counts, and nothing in it can make us less strict."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shlex
import stat
import subprocess
from pathlib import Path

from edgekd.errors import DeviceError, UsageError
from edgekd.values.board import Board

OLD_PYTHON = "edgekd-old "  # and the version, where it is older than 3.10
_LONGEST_SOCKET = 70  # ssh adds 17 characters, and a socket's path has 108 at most
_ANSWER_S = 3
# The strictest first: ssh takes the first value it is given, so the user's configuration cannot undo these.
_OPTIONS = (
    "BatchMode=yes", "StrictHostKeyChecking=yes", "UpdateHostKeys=no", "ForwardAgent=no", "ForwardX11=no",
    "ClearAllForwardings=yes", "PermitLocalCommand=no", "RequestTTY=no", "RemoteCommand=none", "LogLevel=ERROR",
    "ServerAliveInterval=5", "ServerAliveCountMax=3", "ControlMaster=auto",
)  # fmt: skip
# For any Python, and any shell: no single quote, no exclamation mark, no line break.
_LOADER = """\
import os, sys
if sys.version_info < (3, 10):
    os.write(1, ("\\n%s" + sys.version.split()[0] + "\\n").encode())
    sys.exit(0)
import zlib
data = bytes()
while len(data) < %d:
    more = os.read(0, %d - len(data))
    if len(more) == 0:
        sys.exit(0)
    data = data + more
exec(zlib.decompress(data))
"""


def command(board: Board, size: int, *, connect_s: int, persist_s: int) -> list[str]:
    """Return the arguments that start Python on a board, which then runs the first `size` bytes it reads.

    Raises:
        UsageError: the destination or the name of Python is none.

    """
    control = control_path(board)
    options = [
        *_OPTIONS,
        f"ConnectTimeout={connect_s}",
        f"ControlPath={control}",
        f"ControlPersist={persist_s}",
    ]
    if board.known_hosts is not None:
        options.append(f"UserKnownHostsFile={_known_hosts(board)}")
    pairs = [part for option in options for part in ("-o", option)]
    loader = _LOADER % (OLD_PYTHON, size, size)
    python = f"exec {_quoted(board.python)} -c {shlex.quote(f'exec({json.dumps(loader)})')}"
    return [*_beginning(board), "-T", *pairs, "--", _destination(board), python]


def control_path(board: Board) -> Path:
    """Return where ssh shares a connection to a board: a name of its own for every way to reach it."""
    how = [board.destination, str(board.port), str(board.known_hosts), str(board.ssh_config)]
    return control_folder() / hashlib.sha256("\n".join(how).encode()).hexdigest()[:16]


def control_folder() -> Path:
    """Return a folder for sockets that nobody else can enter, with a short path.

    Raises:
        DeviceError: it is another user's, or open to others.

    """
    running = Path(os.environ.get("XDG_RUNTIME_DIR", "")) / "edgekd"
    fits = running.is_absolute() and running.parent.is_dir() and len(str(running)) < _LONGEST_SOCKET - 20
    folder = running if fits else Path("/tmp") / f"edgekd-{os.geteuid()}"  # noqa: S108 - checked below
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not ours or stat.S_IMODE(found.st_mode) & 0o077:
        mend = f"look at who made {folder}, and remove it"
        raise DeviceError(f"{folder} is no place for connections", cause="others can enter it", mend=mend)
    return folder


def forget_master(board: Board) -> None:
    """Leave the shared connection to a board to those who still use it; the next one is made afresh."""
    path = control_path(board)
    if not path.exists():
        return
    arguments = [*_beginning(board), "-o", f"ControlPath={path}", "-O", "stop", "--", _destination(board)]
    with contextlib.suppress(subprocess.TimeoutExpired, OSError):
        subprocess.run(arguments, capture_output=True, stdin=subprocess.DEVNULL, timeout=_ANSWER_S)
    path.unlink(missing_ok=True)


def _beginning(board: Board) -> list[str]:
    config = [] if board.ssh_config is None else ["-F", str(board.ssh_config)]
    return ["ssh", *config, *([] if board.port is None else ["-p", str(board.port)])]


def _destination(board: Board) -> str:
    """Return it, after making sure that ssh takes it for nothing else.

    Raises:
        UsageError: it could be read as an option, or holds what no host's name does.

    """
    text = board.destination
    host = text.rpartition("@")[2]
    if (
        not host
        or text.startswith("-")
        or host.startswith("-")
        or any(not " " < one < "\x7f" for one in text)
    ):
        mend = "write user@host, host, or an alias of the SSH configuration"
        raise UsageError(f"{text!r} is no destination for ssh", mend=mend)
    return text


def _quoted(python: str) -> str:
    """Quote it for the shell there; `~/` stays what it means.

    Raises:
        UsageError: it could be read as something else than a program.

    """
    if not python or python.startswith("-") or not python.isprintable():
        raise UsageError(f"{python!r} is no program", mend="write python3, or a path")
    return f"~/{shlex.quote(python[2:])}" if python.startswith("~/") else shlex.quote(python)


def _known_hosts(board: Board) -> str:
    """Return the user's files and ours, as ssh reads a list."""
    own = str(board.known_hosts).replace("%", "%%")
    users = _users_known_hosts(tuple(_beginning(board)), _destination(board))
    return f'{users} "{own}"'


@functools.cache
def _users_known_hosts(beginning: tuple[str, ...], destination: str) -> str:
    """Ask ssh which files the configuration names: an option given here would hide them."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        found = subprocess.run(
            [*beginning, "-G", "--", destination], capture_output=True, text=True, timeout=_ANSWER_S
        )
        for line in found.stdout.splitlines():
            if line.startswith("userknownhostsfile "):
                return line.partition(" ")[2].strip()
    return "~/.ssh/known_hosts ~/.ssh/known_hosts2"
