"""Errors without the paths of the machine they were recorded on, and with those of the machine they are shown on."""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgekd import errors
from edgekd.devices.cassette.records import Failure
from edgekd.errors import EdgekdError, WorkerDied
from edgekd.values.artifact import Artifact

_HOMES = re.compile(r"/(?:home|Users)/[^/\s'\":]+")  # of other users, and of the board's
_STAND_INS = re.compile(r"<[a-z]+(?: \d+(?: name)?)?>")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline: a cassette is anybody's
_LONGEST_CHARS = 20_000


class Words:
    """Stands in for the files and folders of one order, in both directions."""

    def __init__(self, files: Sequence[Artifact] = (), folder: Path | None = None) -> None:
        """Take the files in an order that does not hang on their names."""
        self._files = tuple(files)
        self._own = _own_words(files, folder)
        longest_first = sorted(set(self._own) - {"", "/", "."}, key=len, reverse=True)
        # Not within a longer word: m.onnx is no part of am.onnx.
        pattern = "|".join(map(re.escape, longest_first))
        self._hiding = re.compile(rf"(?<![\w.-])(?:{pattern})(?![\w-])")
        self._showing = {stand_in: own for own, stand_in in reversed(self._own.items())}

    def check_files(self) -> None:
        """Make sure that the files here are what the order says.

        Raises:
            IntegrityError: one is gone, or has other bytes.

        """
        for file in dict.fromkeys(self._files):
            file.verified()

    def failure(self, error: EdgekdError) -> Failure:
        """Write an error down."""
        what, cause, mend = (self.hidden(text) for text in (error.what, error.cause, error.mend))
        # One that a device derived for itself is what it derives from.
        kind = next(one.__name__ for one in type(error).__mro__ if one.__module__ == errors.__name__)
        return Failure(kind=kind, what=what, cause=cause, mend=mend)

    def error(self, failure: Failure) -> EdgekdError:
        """Make the error again; a kind that is none of ours is a worker that answered nonsense."""
        kind = getattr(errors, failure.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, EdgekdError)):
            kind = WorkerDied
        return kind(self.shown(failure.what), cause=self.shown(failure.cause), mend=self.shown(failure.mend))

    def hidden(self, text: str) -> str:
        """Put what stands in for them in place of paths of this machine."""
        kept = self._hiding.sub(lambda found: self._own[found.group()], text[:_LONGEST_CHARS])
        return _HOMES.sub("<home>", kept)

    def shown(self, text: str) -> str:
        """Put paths of this machine in place of what stands in for them."""
        return _STAND_INS.sub(lambda found: self._showing.get(found.group(), found.group()), harmless(text))


def harmless(text: str) -> str:
    """Leave out what would play with a terminal, and what no message needs."""
    return _CONTROLS.sub("", text)[:_LONGEST_CHARS]


def _own_words(files: Sequence[Artifact], folder: Path | None) -> dict[str, str]:
    """Map texts of this machine to stand-ins; of several for one, the first is what is shown again."""
    words: dict[str, str] = {}
    for at, file in enumerate(files):
        path = file.path.absolute()
        words.setdefault(str(path), f"<file {at}>")
        words.setdefault(str(path.resolve()), f"<file {at}>")
        if "." in path.name:  # one that could be no other word
            words.setdefault(path.name, f"<file {at} name>")
    places = [(f"<place {at}>", file.path.absolute().parent) for at, file in enumerate(files)]
    places += [] if folder is None else [("<folder>", folder.absolute())]
    for stand_in, place in places:
        words.setdefault(str(place), stand_in)
        words.setdefault(str(place.resolve()), stand_in)
    words.setdefault(tempfile.gettempdir(), "<temp>")
    words.setdefault(sys.prefix, "<python>")
    with contextlib.suppress(OSError):  # the current folder was removed
        words.setdefault(str(Path.cwd()), "<here>")
    with contextlib.suppress(RuntimeError):  # this user has no home
        words.setdefault(str(Path.home()), "<home>")
    return words
