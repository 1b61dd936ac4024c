"""What a line of a cassette may hold: a session begins, a part of a file, or an order and what came of it."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgekd.devices.cassette.asked import Asked
from edgekd.errors import ResourcesExhausted
from edgekd.values.artifact import Artifact
from edgekd.values.model import Precision
from edgekd.values.target import Profile

SCHEMA_VERSION = 2
READABLE = (1, 2)  # 1 has no energy, no layers, nothing of the target, and no results of the host's
PART_BYTES = 4 << 20
FILE_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True)
class Session:
    """A device was connected; what follows was asked of it."""

    schema_version: int
    device: str  # its name
    edgekd: str  # version
    tune: str = ""  # of its target
    profile: Profile | None = None  # of its target; None in schema 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some bytes of a file, in the order of its parts."""

    sha256: str  # of the whole file
    at: int  # which part, from 0
    last: bool
    data: str  # base64 of deflated bytes


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error that the device raised."""

    kind: str  # a class of edgekd.errors
    what: str
    cause: str
    mend: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An order and what came of it: a reply or a failure."""

    asked: Asked
    device_ns: int  # that `device_seconds` grew by
    reply: Any = None  # plain; what it decodes to is the order's to say
    failure: Failure | None = None
    fingerprint: str = ""  # of the conditions in the reply


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A file that lies in the cassette."""

    sha256: str
    size_bytes: int
    suffix: str  # .onnx, .xml, .npy


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the host made of a stage, and another host may make otherwise."""

    stage: str
    key: str  # of the call, in the store
    text: str  # the result as the store keeps it
    files: dict[str, Kept]  # by their names in its folder


Record = Session | Part | Entry | Result


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """The reply to `compile`: a `Model` whose files lie in the cassette."""

    file: Kept
    weights: Kept | None
    precision: Precision
    external: tuple[str, ...] = ()  # sha256 of those of the model's own weights that it still takes


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """The reply to `infer`: files that lie in the cassette, in the order of the model's outputs."""

    outputs: dict[str, Kept]


def kept(file: Artifact) -> Kept:
    """Name a file as it lies in a cassette."""
    return Kept(sha256=file.sha256, size_bytes=file.size_bytes, suffix=file.path.suffix)


def parts_of(file: Artifact) -> Iterator[Part]:
    """Cut a file into parts.

    Raises:
        IntegrityError: it is gone, or is not what its digest says.
        ResourcesExhausted: it is too large.

    """
    path, left = file.verified(), file.size_bytes
    if left > FILE_BYTES:
        mend = "give fewer inputs, or leave --record out"
        raise ResourcesExhausted(f"a file of {left >> 20} MiB is too large for a cassette", mend=mend)
    with path.open("rb") as opened:
        for at in range(max(1, -(-left // PART_BYTES))):
            data = opened.read(PART_BYTES)
            left -= len(data)
            packed = base64.b64encode(zlib.compress(data)).decode()
            yield Part(sha256=file.sha256, at=at, last=left <= 0, data=packed)


def bytes_of(part: Part) -> bytes:
    """Unpack a part.

    Raises:
        ValueError: it is no deflated base64, or unpacks to more than a part may hold.

    """
    try:
        inflating = zlib.decompressobj()
        data = inflating.decompress(base64.b64decode(part.data, validate=True), PART_BYTES + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(str(error)) from error
    if len(data) > PART_BYTES or not inflating.eof:
        raise ValueError(f"a part unpacks to more than {PART_BYTES >> 20} MiB, or to nothing whole")
    return data
