from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from edgekd.devices.board import job
from edgekd.devices.board.place import Place
from edgekd.errors import DataError
from edgekd.values.codec import plain
from tests.contracts import models
from tests.contracts.device import target

ID = "a" * 32


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(str(tmp_path / "board"))
    made.make()
    made.path("orders", ID).mkdir(parents=True)
    made.path("files").mkdir()
    return made


def carried_out(place: Place, order: str, body: Any, files: dict[str, str] | None = None) -> dict[str, Any]:
    folder = place.path("orders", ID)
    job.carry_out(place, folder, {"id": ID, "order": order, "body": body, "files": files or {}, "alone": []})
    found: dict[str, Any] = json.loads((folder / "reply.json").read_text())
    assert (found["id"], found["boot_id"]) == (ID, place.boot_id())
    return found


def test_an_order_finds_its_files_by_digest(place: Place, tmp_path: Path):
    data = models.conv_net(tmp_path / "m.onnx").read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    place.path("files", sha256).write_bytes(data)
    body = {"target": plain(target("rehearsal")), "model": {"path": "0/m.onnx", "sha256": sha256}}
    found = carried_out(place, "inspect", body, {"0/m.onnx": sha256})
    assert found["reply"]["outputs"][0]["name"] == "logits"


def test_a_path_that_leads_elsewhere_is_not_opened(place: Place):
    stray = {"path": "/etc/passwd", "sha256": "0" * 64}
    for model, external in ((stray, []), ({**stray, "path": "0/m.onnx"}, [stray])):
        body = {"target": plain(target("rehearsal")), "model": model, "external": external}
        error = carried_out(place, "inspect", body)["error"]
        assert error["kind"] == "UsageError"
        assert "/etc/passwd" in error["what"]


def test_an_order_that_no_board_knows_is_refused(place: Place):
    error = carried_out(place, "prob", {})["error"]
    assert error["kind"] == "UsageError"
    assert "probe" in error["mend"]


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (DataError("no", cause="so", mend="do"), "DataError"),
        (MemoryError(), "ResourcesExhausted"),
        (OSError(28, "No space left on device"), "ResourcesExhausted"),
        (OSError(5, "Input/output error"), "WorkerDied"),
        (KeyError("x"), "WorkerDied"),
    ],
)
def test_whatever_goes_wrong_is_a_reply(
    place: Place, monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: str
):
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(job, "_result", fail)
    assert carried_out(place, "probe", {})["error"]["kind"] == kind


def test_where_the_reply_finds_no_room_what_was_made_gives_way(place: Place, monkeypatch: pytest.MonkeyPatch):
    real, tried = job.write_whole, []

    def full(path: Path, data: bytes) -> None:
        tried.append(path)
        if len(tried) == 1:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(job, "write_whole", full)
    error = carried_out(place, "prob", {})["error"]
    assert error["kind"] == "ResourcesExhausted"
    assert not place.path("orders", ID, "out").exists()
