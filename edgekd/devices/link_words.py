"""What ssh and a board say, put into our own errors: nothing of it reaches a terminal as it came."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from edgekd import errors
from edgekd.errors import DeviceError, EdgekdError, IntegrityError, WorkerDied
from edgekd.values.board import Board

_LONGEST = 2000  # characters of an error's part
# Controls, what turns the direction of writing, halves of surrogate pairs, private use; a line break may stay.
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_NO_PYTHON = 127
_SSH_FAILED = 255


class Lost(DeviceError):  # noqa: N818 - reads as the fact it states
    """The connection broke, fell silent or could not be made; what was asked may be asked again."""


def clean(text: str) -> str:
    """Show as escapes what a terminal would act upon."""
    return "".join(_shown(character) for character in text)


def parsed(line: bytes) -> dict[str, Any]:
    r"""Read an object whose every string is clean.

    Raises:
        ValueError: it is something else.
        RecursionError: it is nested too deeply.

    """
    found = _cleaned(json.loads(line, parse_constant=_refuse))
    if not isinstance(found, dict):
        raise ValueError("no object")  # noqa: TRY004 - one kind of nonsense among others
    return found


def raised(told: Any) -> EdgekdError:
    """Return the error that a board tells of, of the same kind as it was raised there."""
    if not isinstance(told, dict):
        return WorkerDied("the board answered nonsense", cause="an error that is no object")
    what, cause, mend, name = (
        str(told.get(part, ""))[:_LONGEST] for part in ("what", "cause", "mend", "kind")
    )
    kind = getattr(errors, name, WorkerDied)
    if not (isinstance(kind, type) and issubclass(kind, EdgekdError)) or kind is EdgekdError:
        kind = WorkerDied
    return kind(what or "the order failed on the board", cause=cause, mend=mend)


def refusal(board: Board, code: int | None, said: str) -> EdgekdError:
    """Say why a connection ended before our program greeted: `code` is that of ssh, `said` its words."""
    words = clean(said.strip())[-600:].strip()
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said or "Host key verification failed" in said:
        return _other_key(board, said)
    if "Permission denied" in said or "Too many authentication failures" in said:
        mend = f"make `ssh {board.destination}` work without a question: ssh-copy-id, or a key in the agent"
        cause = f"{words} (edgekd never asks for a password)"
        return DeviceError(f"{board.name} lets nobody in", cause=cause, mend=mend)
    if code == _SSH_FAILED or code is None or code < 0:
        mend = f"make `ssh {board.destination}` work, then give the same command again"
        return Lost(f"{board.name} cannot be reached", cause=words or "ssh has ended", mend=mend)
    if code == _NO_PYTHON or "not found" in said or "No such file" in said:
        mend = "install python3 there, or name another with `edgekd devices add --python`"
        return DeviceError(f"{board.name} has no {board.python}", cause=words, mend=mend)
    mend = f"run `ssh {board.destination} {board.python} --version`"
    return DeviceError(f"Python does not start on {board.name}", cause=words or f"exit {code}", mend=mend)


def old_python(board: Board, version: str) -> DeviceError:
    """Say that the Python there is too old."""
    return DeviceError(
        f"{board.name} has Python {version}",
        cause=f"{board.python} there is older than 3.10",
        mend="install Python 3.10 or newer there, and name it with `edgekd devices add --python`",
    )


def _other_key(board: Board, said: str) -> IntegrityError:
    shown = re.search(r"SHA256:[A-Za-z0-9+/=]{20,60}", said)
    now = f" (now {shown.group()})" if shown else ""
    known = f"; the known one is {board.fingerprint}" if board.fingerprint else ""
    changed = "CHANGED" in said
    return IntegrityError(
        f"{board.name} shows another host key{now}"
        if changed
        else f"the host key of {board.name} is not known",
        cause=f"someone else may answer in its place, or it was set up anew{known}",
        mend=f"ask its owner; if it is right, `edgekd devices remove {board.name}` and `edgekd devices add` it again",
    )


def _shown(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _UNSAFE:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()


def _cleaned(data: Any) -> Any:
    if isinstance(data, str):
        return data if data.isascii() and data.isprintable() else clean(data)
    if isinstance(data, list):
        return [_cleaned(item) for item in data]
    if isinstance(data, dict):
        return {_cleaned(key): _cleaned(item) for key, item in data.items()}
    return data


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no number")
