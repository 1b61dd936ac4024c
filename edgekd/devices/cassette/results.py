"""What the host made of a stage, on the cassette beside what the device said of it.

Training comes to the same bytes with the same arithmetic only, and which arithmetic is fastest is measured. A run that
trained anew would ask the cassette about files that the device has never seen; so what was trained is kept with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgekd.devices.cassette.lines import altered
from edgekd.devices.cassette.records import FILE_BYTES, Kept, Part, Result, kept, parts_of
from edgekd.devices.cassette.tape import Tape
from edgekd.values.artifact import Artifact

_WORD, _KEY = re.compile(r"[a-z][a-z_]{0,39}"), re.compile(r"[0-9a-f]{32}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def write_result(tape: Tape, stage: str, key: str, text: str, files: Mapping[str, Artifact]) -> bool:
    """Write a result down, with the files that the cassette lacks; return whether it could hold it.

    Args:
        tape: of a recorded session.
        stage: that made it.
        key: of the call, in the store.
        text: the result as the store keeps it.
        files: by their names in the result's folder.

    Raises:
        IntegrityError: a file is not what its digest says.
        ResourcesExhausted: the disk is full.

    """
    if (stage, key) in tape.results:
        return True
    fits = all(_FILE.fullmatch(name) and file.size_bytes <= FILE_BYTES for name, file in files.items())
    if not fits or not _WORD.fullmatch(stage) or not _KEY.fullmatch(key):
        return False
    held = {name: kept(file) for name, file in files.items()}
    tape.append([*_missing(tape, files), Result(stage=stage, key=key, text=text, files=held)])
    return True


def read_results(tape: Tape) -> Iterator[Result]:
    """Yield every result that lies there, each name in it checked.

    Raises:
        IntegrityError: one names what no store would.

    """
    for stage, key in tape.results:
        found = tape.result(stage, key)
        plain = all(_FILE.fullmatch(name) for name in found.files)
        if (found.stage, found.key) != (stage, key) or not plain:
            raise altered(tape.path, "a result is something else now")
        if not _WORD.fullmatch(stage) or not _KEY.fullmatch(key):
            raise altered(tape.path, "a result has the name of none")
        yield found


def restore_files(tape: Tape, files: Mapping[str, Kept], folder: Path) -> None:
    """Write the files of a result into its folder.

    Raises:
        IntegrityError: the cassette does not hold one, or holds other bytes.
        ResourcesExhausted: the disk is full.

    """
    for name, file in files.items():
        tape.restore(file, folder / name)


def _missing(tape: Tape, files: Mapping[str, Artifact]) -> Iterator[Part]:
    for sha256, file in {file.sha256: file for file in files.values()}.items():
        if not tape.holds(sha256):
            yield from parts_of(file)
