"""What the process of an order does: lay out its files, carry it out, leave the reply."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.devices.board.files import Files, view
from edgekd.devices.board.lines import told
from edgekd.devices.board.orders import Desk
from edgekd.devices.board.place import Place, cannot_write, full_disk, write_whole
from edgekd.errors import EdgekdError, ResourcesExhausted, UsageError, WorkerDied
from edgekd.values.codec import decode, did_you_mean, plain


def carry_out(place: Place, folder: Path, asked: dict[str, Any]) -> None:
    """Carry out the order that was asked, and write `reply.json`, whatever comes of it."""
    try:
        _reply(place, folder, asked, _answer(place, folder, asked))
    except OSError as error:  # what it made may be what fills the disk
        shutil.rmtree(folder / "out", ignore_errors=True)
        _reply(place, folder, asked, {"error": told(cannot_write(place, error))})


def _reply(place: Place, folder: Path, asked: dict[str, Any], answer: dict[str, Any]) -> None:
    # Another boot in between cannot be: this process would not be here.
    whole = {"id": asked["id"], "boot_id": place.boot_id(), **answer}
    write_whole(folder / "reply.json", json.dumps(whole, allow_nan=False).encode())


def _answer(place: Place, folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    name = asked["order"]
    try:
        return {"reply": plain(_result(place, folder, name, asked))}
    except EdgekdError as error:
        return {"error": told(error)}
    except MemoryError:
        mend = "free memory on the board, or use a smaller model"
        return {"error": told(ResourcesExhausted(f"{name} ran out of memory on the board", mend=mend))}
    except OSError as error:
        kind = ResourcesExhausted if full_disk(error) else WorkerDied
        return {"error": told(kind(f"{name} failed on the board", cause=str(error)[:2000]))}
    except Exception as error:  # noqa: BLE001 - whatever it is, the host must hear of it
        cause = f"{type(error).__name__}: {error}"[:2000]
        return {"error": told(WorkerDied(f"{name} failed on the board", cause=cause))}


def _result(place: Place, folder: Path, name: str, asked: dict[str, Any]) -> object:
    seen, made = folder / "in", folder / "out"
    made.mkdir(mode=0o700, exist_ok=True)
    Files(place).lay_out(asked["files"], seen, alone=asked["alone"])
    handlers = Desk(made, place.root).handlers()
    if name not in handlers:
        raise UsageError(f"a board knows no order {name!r}", mend=did_you_mean(name, list(handlers)))
    handler = handlers[name]
    return handler.carry_out(decode(handler.order, _placed(asked["body"], seen), name))


def _placed(data: Any, seen: Path) -> Any:
    """Make the path of every artifact one of this machine."""
    if isinstance(data, list):
        return [_placed(item, seen) for item in data]
    if not isinstance(data, Mapping):
        return data
    if set(data) == {"path", "sha256"}:
        return {**data, "path": str(seen / view(data["path"]))}
    return {key: _placed(item, seen) for key, item in data.items()}
