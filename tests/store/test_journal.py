from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekd.errors import IntegrityError
from edgekd.store.journal import append, read


@dataclass(frozen=True, kw_only=True)
class Note:
    number: int
    text: str


def test_values_come_back_in_order(tmp_path: Path):
    notes = [Note(number=number, text="ä\n") for number in range(3)]
    for note in notes:
        append(tmp_path / "deep" / "notes.jsonl", note)
    assert read(tmp_path / "deep" / "notes.jsonl", Note) == tuple(notes)


def test_a_journal_that_never_began_is_empty(tmp_path: Path):
    assert read(tmp_path / "notes.jsonl", Note) == ()


def test_a_line_torn_at_any_byte_costs_that_line_and_no_other(tmp_path: Path):
    path = tmp_path / "notes.jsonl"
    append(path, Note(number=1, text="whole"))
    whole = path.stat().st_size
    append(path, Note(number=2, text="torn"))
    data = path.read_bytes()
    for cut in range(whole, len(data)):
        path.write_bytes(data[:cut])
        assert read(path, Note) == (Note(number=1, text="whole"),)


def test_what_follows_a_torn_line_is_not_glued_to_it(tmp_path: Path):
    path = tmp_path / "notes.jsonl"
    append(path, Note(number=1, text="whole"))
    path.write_bytes(path.read_bytes() + b'{"numb')
    append(path, Note(number=3, text="next"))
    assert read(path, Note) == (Note(number=1, text="whole"), Note(number=3, text="next"))


def test_a_line_altered_in_the_middle_is_refused(tmp_path: Path):
    path = tmp_path / "notes.jsonl"
    path.write_text('{"number": 1, "text": 2}\n{"number": 2, "text": "b"}\n', encoding="utf-8")
    with pytest.raises(IntegrityError, match="line 1"):
        read(path, Note)
