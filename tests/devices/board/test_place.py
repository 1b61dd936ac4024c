from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekd.devices.board.place import Place, read_json, write_whole
from edgekd.errors import IntegrityError


def test_a_folder_is_made_for_its_user_alone_and_marked(tmp_path: Path):
    place = Place(str(tmp_path / "a" / "b"))
    assert not place.marked
    place.make()
    place.make()
    assert place.marked
    assert place.root.stat().st_mode & 0o777 == 0o700


def test_a_relative_folder_lies_below_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Place(".cache/edgekd").root == tmp_path / ".cache" / "edgekd"
    assert Place("~/x").root == tmp_path / "x"


def test_a_folder_that_holds_something_else_is_neither_used_nor_removed(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years")
    place = Place(str(tmp_path))
    with pytest.raises(IntegrityError, match="not edgekd's"):
        place.make()
    with pytest.raises(IntegrityError, match="not removed"):
        place.remove()
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_a_mark_that_is_a_link_is_none(tmp_path: Path):
    (tmp_path / "edgekd-board").symlink_to("/etc/hostname")
    assert not Place(str(tmp_path)).marked


def test_removing_frees_what_was_put_there_and_keeps_what_a_user_put(tmp_path: Path):
    place = Place(str(tmp_path / "board"))
    place.make()
    place.path("files").mkdir()
    place.path("files", "x").write_bytes(bytes(1 << 20))
    os.link(place.path("files", "x"), place.path("files", "y"))  # counts once
    place.path("notes.txt").write_text("mine")
    assert 1 <= place.remove() < 1.1
    assert [path.name for path in place.root.iterdir()] == ["notes.txt"]


def test_removing_does_not_follow_links_out_of_the_folder(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    place = Place(str(tmp_path / "board"))
    place.make()
    place.path("files").symlink_to(outside)
    place.path("orders").mkdir()
    place.path("orders", "link").symlink_to(outside)
    place.remove()
    assert (outside / "kept").read_text() == "kept"
    assert not place.root.exists()


def test_removing_what_is_not_there_frees_nothing(tmp_path: Path):
    assert Place(str(tmp_path / "none")).remove() == 0


def test_a_file_is_written_whole_and_leaves_nothing_beside_it(tmp_path: Path):
    write_whole(tmp_path / "a.json", b'{"a": 1}')
    write_whole(tmp_path / "a.json", b'{"a": 2}')
    assert read_json(tmp_path / "a.json") == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_boot_can_be_named_by_a_file_and_is_the_kernels_otherwise(tmp_path: Path):
    place = Place(str(tmp_path))
    assert place.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    place.path("boot-id").write_text("another\n")
    assert place.boot_id() == "another"
