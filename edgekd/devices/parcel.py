"""What is copied to a board: the part of edgekd that a device needs, packed so that equal files give equal bytes."""

from __future__ import annotations

import functools
import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_FOLDERS = ("backends", "runner", "timing", "values", "worker", "devices/board")
_FILES = (
    "__init__.py", "errors.py", "wire.py", "devices/__init__.py", "devices/blocks.py",
    "devices/by_trtexec.py", "devices/external.py", "devices/local.py", "devices/restoring.py",
    "devices/tuned_here.py", "devices/tuning.py",
)  # fmt: skip
_KINDS = {".py", ".onnx"}  # modules, and the three-operator model of `doctor`
# They travel with every connection: `errors` and what is written to need nothing else. In the order of their imports.
FIRST = (
    "edgekd.errors", "edgekd.devices.board.place", "edgekd.devices.board.lease", "edgekd.devices.board.lines",
    "edgekd.devices.board.unpack", "edgekd.devices.board.first",
)  # fmt: skip
_START = """
import sys, types
for name, source in MODULES:
    above = ""
    for part in name.split(".")[:-1]:
        above = above + "." + part if above else part
        if above not in sys.modules:
            sys.modules[above] = types.ModuleType(above)
            sys.modules[above].__path__ = []
    module = sys.modules[name] = types.ModuleType(name)
    setattr(sys.modules[above], name.rpartition(".")[2], module)
    exec(compile(source, name, "exec"), module.__dict__)
sys.modules["edgekd.devices.board.first"].main(FOLDER)
"""


@dataclass(frozen=True)
class Parcel:
    """The worker, compressed, and the digest of what is in it."""

    digest: str
    data: bytes


@functools.cache
def parcel() -> Parcel:
    """Pack the worker as it lies here."""
    files = {name: (_ROOT / name).read_bytes() for name in names()}
    listed = [[f"edgekd/{name}", len(body), hashlib.sha256(body).hexdigest()] for name, body in files.items()]
    head = json.dumps(listed, separators=(",", ":")).encode()
    data = zlib.compress(head + b"\n" + b"".join(files.values()), 9)
    return Parcel(digest=hashlib.sha256(head).hexdigest(), data=data)


def names() -> tuple[str, ...]:
    """Return the files of the worker, below the package."""
    found = {
        str(path.relative_to(_ROOT))
        for folder in _FOLDERS
        for path in (_ROOT / folder).rglob("*")
        if path.suffix in _KINDS and path.is_file()
    }
    return tuple(sorted(found.union(_FILES)))


def first_contact(folder: str) -> bytes:
    """Return the program, compressed, that answers where nothing of ours lies."""
    modules = [(name, (_ROOT.parent / f"{name.replace('.', '/')}.py").read_text("utf-8")) for name in FIRST]
    return zlib.compress(f"MODULES = {modules!r}\nFOLDER = {folder!r}\n{_START}".encode(), 9)
