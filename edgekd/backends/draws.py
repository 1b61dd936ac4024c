"""Copies of one model that a runtime must build anew: the same graph and weights, another digest.

A build that times its candidates is a random draw. To draw again, a copy of the .onnx gets a number in its
`metadata_props`, which no runtime computes with. Files are known by their digest, so a copy's build is kept under
its own name on every device, and nothing on the way there needs to know of draws.
"""

from __future__ import annotations

import re
from pathlib import Path

KEY = b"edgekd.draw"
_FIELD, _NAME, _VALUE = (
    0x72,
    0x0A,
    0x12,
)  # ModelProto.metadata_props (14), its key (1) and value (2); all of wire type 2
_LARGEST = 99
_LAST = re.compile(rb"r[\x10-\x11]\n\x0b" + re.escape(KEY) + rb"\x12[\x01-\x02]([0-9]{1,2})\Z")
_TAIL_BYTES = 64


def numbered(model: bytes, draw: int) -> bytes:
    """Return the bytes of an .onnx with a number in its metadata, 1 to 99.

    Protocol buffers are concatenated: an entry appended to the file is one more entry of the repeated field.
    """
    if not 1 <= draw <= _LARGEST:
        raise ValueError(f"a draw is numbered 1 to {_LARGEST}, not {draw}")
    value = str(draw).encode()
    entry = bytes((_NAME, len(KEY))) + KEY + bytes((_VALUE, len(value))) + value
    return model + bytes((_FIELD, len(entry))) + entry


def draw_of(path: Path) -> int | None:
    """Return the number that `numbered` gave a file; None where it is the model itself."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        found = _LAST.search(file.read())
    return int(found.group(1)) if found else None
