"""Measurements travel whole, or are refused with cause and mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekd.errors import ConfigError, DataError, EdgekdError, IntegrityError
from edgekd.store.exchange import export_measurements, import_measurements
from edgekd.values.measurement import Measurement
from edgekd.values.model import Precision
from edgekd.values.student import StageSpec, StudentSpec

STAGE = StageSpec(width=8, depth=1, kernel=3, expansion=1.0)
ONE = Measurement(
    device="0" * 64,
    processor="a processor, ä",
    runtime="openvino",
    version="2026.4",
    precision=Precision.INT8,
    spec=StudentSpec(family="residual", resolution=8, stem=8, stages=(STAGE,)),
    channels=1,
    classes=10,
    p50_ms=0.125,
    samples=320,
    protocol="1" * 64,
)
THREE = tuple(replace(ONE, p50_ms=p50_ms) for p50_ms in (0.125, 0.25, 0.5))


def test_what_was_exported_is_what_is_imported(tmp_path: Path):
    assert set(import_measurements(export_measurements(tmp_path / "a.jsonl", THREE))) == set(THREE)


def test_equal_measurements_give_equal_files_whatever_their_order_and_number(tmp_path: Path):
    one = export_measurements(tmp_path / "a.jsonl", THREE)
    other = export_measurements(tmp_path / "b.jsonl", (*reversed(THREE), ONE))
    assert one.read_bytes() == other.read_bytes()


def changed(line: int, change: Callable[[dict[str, Any]], object]) -> Callable[[list[str]], list[str]]:
    def edit(lines: list[str]) -> list[str]:
        held = json.loads(lines[line])
        change(held)
        return [*lines[:line], json.dumps(held), *lines[line + 1 :]]

    return edit


TAMPERED: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "a latency": (changed(1, lambda held: held["measurement"].update(p50_ms=0.01)), "line 2 was changed"),
    "a digest": (changed(2, lambda held: held.update(sha256="f" * 64)), "line 3 was changed"),
    "a line less": (lambda lines: lines[:-1], "says 3 measurements and has 2"),
    "a line twice": (lambda lines: [*lines[:3], lines[1]], "lines were exchanged"),
    "a line torn": (lambda lines: [*lines[:3], lines[3][:40]], "line 4 is no JSON"),
    "a nested bomb": (lambda lines: [*lines[:3], "[" * 100_000], "line 4 is no JSON"),
    "a newer schema": (changed(0, lambda held: held.update(schema=2)), "another schema version"),
    "no schema": (changed(0, lambda held: held.pop("schema")), "another schema version"),
    "a count of words": (changed(0, lambda held: held.update(count="3")), "does not say what the file holds"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_file_that_was_tampered_with_is_refused_with_cause_and_mend(name: str, tmp_path: Path):
    path = export_measurements(tmp_path / "a.jsonl", THREE)
    edit, cause = TAMPERED[name]
    path.write_text("\n".join(edit(path.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")
    with pytest.raises(IntegrityError) as caught:
        import_measurements(path)
    assert cause in str(caught.value)
    assert caught.value.mend


@pytest.mark.parametrize("text", ["", "hello\n", "\xff\xfe"])
def test_another_file_is_no_fault_of_its_digests(text: str, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        import_measurements(path)
    assert caught.value.mend
    with pytest.raises(DataError):
        import_measurements(tmp_path / "absent")


def test_a_student_that_would_fill_the_memory_is_refused():
    bomb = replace(STAGE, depth=10**9)
    with pytest.raises(ConfigError, match="no student"):
        replace(ONE, spec=replace(ONE.spec, stages=(bomb,)))
    for p50_ms in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(EdgekdError, match="above 0"):
            replace(ONE, p50_ms=p50_ms)
