from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgekd.errors import ResourcesExhausted
from edgekd.store import replacing, write_text


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text(encoding="utf-8") == "two"
    assert [found.name for found in path.parent.iterdir()] == ["a.txt"]


def test_an_error_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def torn() -> None:
        with replacing(path) as partial:
            partial.write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        torn()
    assert path.read_text(encoding="utf-8") == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
def test_a_full_disk_says_so_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def fill() -> None:
        with replacing(path) as partial:
            partial.symlink_to("/dev/full")
            partial.write_text("new", encoding="utf-8")

    with pytest.raises(ResourcesExhausted) as caught:
        fill()
    assert caught.value.exit_code == 7
    assert str(path) in caught.value.what
    assert "free some space" in caught.value.mend
    assert path.read_text(encoding="utf-8") == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_or_quota_found_while_flushing_counts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourcesExhausted):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"


def test_another_failure_is_not_called_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "file" / "below", "x")
