from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekd.devices.board.files import Files
from edgekd.devices.board.place import Place
from edgekd.errors import IntegrityError, ResourcesExhausted, UsageError

BODY = bytes(range(256)) * 400
SHA256 = hashlib.sha256(BODY).hexdigest()


class Bytes:
    """Stands for the connection: gives what it has, in pieces."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_bytes(self, size: int, give: Callable[[bytes], None]) -> None:
        for at in range(0, size, 1000):
            give(self.data[at : min(size, at + 1000)])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(str(tmp_path / "board"))
    made.make()
    return made


def receive(place: Place, data: bytes, sha256: str = SHA256) -> Files:
    files = Files(place)
    files.receive(sha256, len(data), Bytes(data))  # type: ignore[arg-type]
    return files


def test_a_file_arrives_once_and_is_there_for_the_next_session(place: Place):
    receive(place, BODY)
    assert Files(place).missing([SHA256, "0" * 64]) == ["0" * 64]
    assert place.path("files", SHA256).read_bytes() == BODY


def test_a_file_cut_at_any_32nd_is_refused_and_leaves_nothing(place: Place):
    refused = 0
    for part in range(32):
        with pytest.raises(IntegrityError):
            receive(place, BODY[: len(BODY) * part // 32])
        refused += 1
    assert refused == 32
    assert list(place.path("files").iterdir()) == []


def test_a_file_with_another_content_is_refused(place: Place):
    with pytest.raises(IntegrityError, match="did not arrive"):
        receive(place, BODY[:-1] + b"x")


def test_a_file_that_rotted_on_the_board_is_missing_again(place: Place):
    receive(place, BODY)
    place.path("files", SHA256).write_bytes(BODY[:-1] + b"x")
    assert Files(place).missing([SHA256]) == [SHA256]
    assert not place.path("files", SHA256).exists()


def test_views_have_the_names_an_order_needs_and_cost_no_space(place: Place, tmp_path: Path):
    files = receive(place, BODY)
    files.lay_out({"0/net.xml": SHA256, "0/net.bin": SHA256}, tmp_path / "in")
    assert (tmp_path / "in" / "0" / "net.bin").read_bytes() == BODY
    assert (tmp_path / "in" / "0" / "net.xml").samefile(place.path("files", SHA256))


def test_a_disk_without_hard_links_gets_copies(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    files = receive(place, BODY)
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    files.lay_out({"0/net.onnx": SHA256}, tmp_path / "in")
    assert (tmp_path / "in" / "0" / "net.onnx").read_bytes() == BODY


@pytest.mark.parametrize(
    "name",
    ["../x", "0/../x", "/0/x", "0/./x", "0/a/../../x", "x", "0/", "0//x", "", "0/a\nb", "0/\0", "0/\x1b[2J", "a/x",
     "0/..", "12345/x", f"0/{'x' * 256}", f"0/{'x/' * 10}x", "0/\ud800", "\u0661/x"],
)  # fmt: skip
def test_a_view_cannot_lie_elsewhere(place: Place, tmp_path: Path, name: str):
    files = receive(place, BODY)
    with pytest.raises(UsageError):
        files.lay_out({name: SHA256}, tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_a_view_may_have_the_name_that_a_model_gives_its_weights(place: Place, tmp_path: Path):
    receive(place, BODY).lay_out({"0/a net.onnx.data": SHA256, "0/more/größe.bin": SHA256}, tmp_path / "in")
    assert (tmp_path / "in/0/a net.onnx.data").read_bytes() == BODY
    assert (tmp_path / "in/0/more/größe.bin").read_bytes() == BODY


def test_what_must_stand_alone_is_no_link(place: Place, tmp_path: Path):
    receive(place, BODY).lay_out({"0/a": SHA256, "0/b": SHA256}, tmp_path / "in", alone=["0/b"])
    assert (tmp_path / "in/0/a").stat().st_nlink == 2
    assert (tmp_path / "in/0/b").stat().st_nlink == 1
    (tmp_path / "in/0/b").write_bytes(b"scribbled on")
    assert Files(place).missing([SHA256]) == []


@pytest.mark.parametrize("name", ["", "..", "../../x", "A" * 64, "0" * 31, "0" * 65, "0" * 63 + "\n"])
def test_only_a_digest_names_a_file(place: Place, name: str):
    with pytest.raises(UsageError):
        Files(place).missing([name])


def test_a_file_that_is_gone_is_named(place: Place, tmp_path: Path):
    with pytest.raises(IntegrityError, match="lost"):
        Files(place).lay_out({"0/a": SHA256}, tmp_path / "in")


def test_room_is_made_by_what_was_used_longest_ago(place: Place, monkeypatch: pytest.MonkeyPatch):
    bodies = [bytes([at]) * 1000 for at in range(3)]
    names = [hashlib.sha256(body).hexdigest() for body in bodies]
    for at, body in enumerate(bodies):
        receive(place, body, names[at])
        os.utime(place.path("files", names[at]), (at, at))
    free = iter([0, 0, 100, 100])
    monkeypatch.setattr(Place, "free_mib", lambda _: next(free))
    receive(place, BODY)
    assert Files(place).missing(names) == names[:2]


def test_a_full_disk_is_said_and_the_next_order_is_still_understood(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Place, "free_mib", lambda _: 0)
    given = Bytes(BODY)
    with pytest.raises(ResourcesExhausted, match="no room"):
        Files(place).receive(SHA256, len(BODY), given)  # type: ignore[arg-type]
    assert list(place.path("files").iterdir()) == []


def test_what_broken_connections_left_is_dropped(place: Place):
    receive(place, BODY)
    place.path("files", f"{SHA256}.77.tmp").write_bytes(b"half")
    Files(place).drop_unfinished()
    assert [path.name for path in place.path("files").iterdir()] == [SHA256]
