"""The boards that a user has added: one TOML file in the folder of edgekd's settings."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from edgekd.errors import ConfigError, DeviceError, IntegrityError, UsageError
from edgekd.values.board import Board
from edgekd.values.codec import decode, did_you_mean, plain

# The same library under two names; mypy, which reads for 3.10, need not have the backport at hand.
tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

_FILE, _KNOWN_HOSTS, _LOCK = "devices.toml", "known_hosts", ".devices.lock"
_HEAD = (
    "# Boards, as `edgekd devices add` wrote them down. edgekd writes this file anew: comments are lost.\n"
)
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_TAKEN = ("local", "cassette")
_URL = re.compile(r"ssh://(?:(?P<user>[^@/]*)@)?(?P<host>\[[^\]]*\]|[^:/@]*)(?::(?P<port>\d{1,5}))?/?")
_PLAIN = re.compile(r"(?:(?P<user>[^@/]*)@)?(?P<host>[^@/]*)")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+\\-]*")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")
_FORM = "write ssh://user@host, ssh://user@host:port, or ssh://alias for a host of ~/.ssh/config"
_PATIENCE_S = 10.0  # for another edgekd that writes the file


def config_folder() -> Path:
    """Return the folder of edgekd's settings: $XDG_CONFIG_HOME/edgekd, or ~/.config/edgekd.

    Raises:
        UsageError: this user has no home folder.

    """
    given = Path(os.environ.get("XDG_CONFIG_HOME") or "")
    try:
        folder = given if given.is_absolute() else Path.home() / ".config"
    except RuntimeError as error:
        what = "there is no home folder to keep devices in"
        raise UsageError(what, cause=str(error), mend="set XDG_CONFIG_HOME to a folder") from error
    return folder / "edgekd"


def boards(folder: Path) -> dict[str, Board]:
    """Read the boards that were added; none where there is no file.

    Raises:
        ConfigError: the file is not TOML, or a board in it cannot be; the message names the line or the board.
        IntegrityError: others may write the file, which says where keys of the user's are sent.

    """
    path = folder / _FILE
    if not path.is_file():
        return {}
    _refuse_if_others_write(path)
    found = {}
    for name, table in _tables(path).items():
        found[name] = _read(path, name, table)
    return found


def known_board(folder: Path, name: str) -> Board:
    """Return one board.

    Raises:
        DeviceError: there is none of that name; the message suggests the nearest.
        ConfigError: the file is broken.

    """
    known = boards(folder)
    if name not in known:
        nearest = did_you_mean(name, ["local", *known])
        mend = f"{nearest}; or add it: edgekd devices add NAME ssh://user@host"
        raise DeviceError(f"no device is called {name[:60]!r}", mend=mend)
    return known[name]


def remember(folder: Path, board: Board) -> None:
    """Write a board down, in place of the one of its name.

    Raises:
        UsageError: its name, destination, program or folder cannot be one.
        ConfigError: the file is broken.

    """
    checked = _checked(board)
    with _writing(folder) as held:
        held[board.name] = checked


def forget(folder: Path, name: str) -> None:
    """Take a board out of the file; one that is not there is no error.

    Raises:
        ConfigError: the file is broken.

    """
    with _writing(folder) as held:
        held.pop(name, None)


def known_hosts(folder: Path) -> Path:
    """Return the file of edgekd's own known host keys."""
    return folder / _KNOWN_HOSTS


def new_board(
    name: str,
    destination: str,
    *,
    python: str = "python3",
    folder: str = ".cache/edgekd",
    profile: str = "",
    ssh_config: Path | None = None,
) -> Board:
    """Make a board of what a user wrote.

    A destination is never repeated in a message: it may hold a password.

    Raises:
        UsageError: a part cannot be what it should be.

    """
    where, port = destination_from(destination)
    config = None if ssh_config is None else ssh_config.absolute()
    return _checked(
        Board(
            name=name,
            destination=where,
            port=port,
            python=python,
            folder=folder,
            profile=profile,
            ssh_config=config,
        )
    )


def destination_from(text: str) -> tuple[str, int | None]:
    """Read `ssh://user@host:port`, or `user@host`; the port is None where none is given.

    Raises:
        UsageError: it has another form, or holds a password.

    """
    parts = (_URL if text.startswith("ssh://") else _PLAIN).fullmatch(text)
    user, host = (parts["user"], parts["host"].strip("[]")) if parts else (None, "")
    if user is not None and ":" in user:
        mend = "leave it out: your keys, the agent and ~/.ssh/config log in"
        raise UsageError("the destination holds a password", mend=mend)
    if not parts or not _HOST.fullmatch(host) or (user is not None and not _USER.fullmatch(user)):
        raise UsageError("the destination is not that of an SSH host", mend=_FORM)
    port = parts.groupdict().get("port")
    if port is not None and not 0 < int(port) < 2**16:
        raise UsageError(f"there is no port {port}", mend="give one from 1 to 65535")
    return (host if user is None else f"{user}@{host}"), (int(port) if port else None)


def _checked(board: Board) -> Board:
    if not _NAME.fullmatch(board.name) or board.name in _TAKEN:
        cause = f"{board.name} stands for something else" if board.name in _TAKEN else ""
        mend = "use a-z, 0-9 and - inside, at most 40 of them, such as orin-nano"
        raise UsageError(f"{board.name[:60]!r} cannot be a device's name", cause=cause, mend=mend)
    if destination_from(board.destination) != (board.destination, None):
        raise UsageError(
            "the destination is not that of an SSH host", mend="write user@host, and the port beside it"
        )
    _check_text(
        board.python, "the program of --python", "give a program's name or path there, such as python3.11"
    )
    _check_text(board.folder, "the --folder", "give one such as .cache/edgekd or /data/edgekd")
    for text in (
        str(board.ssh_config or ""),
        board.profile,
        board.machine,
        board.conditions,
        board.seen,
        board.fingerprint,
    ):
        _check_text(text or "none", "a value", "use letters that print")
    last = PurePosixPath(board.folder)
    if "edgekd" not in last.name or ".." in last.parts or last.parts[0].startswith("~"):
        cause = "`devices clean` removes it with all that is in it"
        mend = "give one whose last part has edgekd in its name, such as .cache/edgekd"
        raise UsageError(f"the folder {board.folder!r} is not edgekd's own", cause=cause, mend=mend)
    return board


def _check_text(text: str, what: str, mend: str) -> None:
    if not text or text.startswith("-") or not text.isprintable() or len(text) > 4096:  # noqa: PLR2004 - PATH_MAX
        raise UsageError(f"{what} cannot be {text[:60]!r}", mend=mend)


def _read(path: Path, name: str, table: Any) -> Board:
    mend = f"mend {path}, or take the table [{name[:60]}] out and add the board again"
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {name[:60]!r} is not a board", cause="a board is a table", mend=mend)
    for key in ("name", "known_hosts"):  # the table's own name, and the file beside this one
        if key in table:
            raise ConfigError(f"{path}: {key!r} cannot be given in [{name[:60]}]", mend="take that line out")
    try:
        found = decode(Board, {"name": name, **table}, name[:60])
        return _checked(replace(found, known_hosts=known_hosts(path.parent)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.what}", cause=error.cause, mend=error.mend or mend) from error
    except UsageError as error:
        raise ConfigError(f"{path}: [{name[:60]}] {error.what}", cause=error.cause, mend=mend) from error


def _tables(path: Path) -> dict[str, Any]:
    mend = f"mend that line, or remove {path} and add the boards again"
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML", cause=str(error), mend=mend) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read", cause=str(error), mend=mend) from error
    return table


def _refuse_if_others_write(path: Path) -> None:
    found = path.stat()
    if found.st_mode & 0o022 or found.st_uid not in (0, os.geteuid()):
        cause = "it says which machines and programs edgekd starts"
        mend = f"look through it, then: chown $USER {path}; chmod 600 {path}"
        raise IntegrityError(f"others can write {path}", cause=cause, mend=mend)


@contextmanager
def _writing(folder: Path) -> Iterator[dict[str, Board]]:
    """Give the boards to change, and write them down when the block ends well; one process at a time."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    try:
        with FileLock(folder / _LOCK, timeout=_PATIENCE_S, mode=0o600):
            held = boards(folder)
            yield held
            _write(folder / _FILE, held)
    except Timeout as error:
        mend = "wait for it, or end it, then give the command again"
        raise DeviceError(f"another edgekd is writing {folder / _FILE}", mend=mend) from error


def _write(path: Path, held: Mapping[str, Board]) -> None:
    from edgekd.store.files import replacing

    text = _HEAD + "".join(_table(held[name]) for name in sorted(held))
    with replacing(path) as partial:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)


def _table(board: Board) -> str:
    """Write a board as a TOML table; what is as it is by itself is left out."""
    lines = [f"\n[{board.name}]"]
    for field in fields(board):
        value = getattr(board, field.name)
        if field.name not in ("name", "known_hosts") and value != field.default:
            lines.append(f"{field.name} = {_toml(plain(value))}")
    return "\n".join(lines) + "\n"


def _toml(value: str | int) -> str:
    """Write a string as TOML's basic string, which is JSON's but for DEL; a whole number as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
