"""Carry what the host trained and exported on a cassette, so that a replayed run asks about the same files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from edgekd.devices import Device
from edgekd.devices.cassette import CassetteDevice, RecordedDevice
from edgekd.store import Store, write_text
from edgekd.values.artifact import Artifact

log = logging.getLogger(__name__)

# Stages whose bytes hang on the arithmetic of the machine that they run on, and those made of what they made.
_STAGES = (
    "teach", "teacher_model", "label", "distill", "export", "quantize", "survey", "rank",
    "distill_quantized", "export_quantized",
)  # fmt: skip
_RESULT = "result.json"
_ARTIFACT = {"path", "sha256"}


@contextmanager
def carried(store: Store, device: Device) -> Iterator[None]:
    """Fill the store from a cassette, and a cassette that is being recorded from the store.

    Raises:
        IntegrityError: the cassette holds something else than results of ours.
        ResourcesExhausted: the disk is full.

    """
    if isinstance(device, CassetteDevice):
        _unpack(store.root, device)
    try:
        yield
    finally:
        if isinstance(device, RecordedDevice):
            _pack(store.root, device)


def _unpack(root: Path, device: CassetteDevice) -> None:
    found = 0
    for result in device.kept():
        folder = root / result.stage / result.key
        known = result.stage in _STAGES and not (folder / _RESULT).exists()
        if known and _names(result.text) == result.files.keys():
            folder.mkdir(parents=True, exist_ok=True)
            device.restore(result, folder)
            write_text(folder / _RESULT, result.text)
            found += 1
    if found:
        log.info("%d results of the recorded run need not be made again here", found)


def _pack(root: Path, device: RecordedDevice) -> None:
    for done in sorted(path for stage in _STAGES for path in root.glob(f"{stage}/*/{_RESULT}")):
        folder, text = done.parent, done.read_text(encoding="utf-8")
        names = _names(text)
        if names is not None and all((folder / name).is_file() for name in names):
            files = {name: Artifact.of(folder / name) for name in sorted(names)}
            device.keep(folder.parent.name, folder.name, text, files)


def _names(text: str) -> set[str] | None:
    """Return the names of a result's files; None where one lies outside its folder, or it is no result."""
    try:
        paths = set(_paths(json.loads(text)))
    except (ValueError, RecursionError):
        return None
    return None if any(len(PurePath(path).parts) != 1 or path == ".." for path in paths) else paths


def _paths(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        if data.keys() == _ARTIFACT:
            yield str(data["path"])
        for item in data.values():
            yield from _paths(item)
    elif isinstance(data, list):
        for item in data:
            yield from _paths(item)
