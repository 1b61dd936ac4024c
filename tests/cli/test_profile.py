"""`edgekd profile` of a bundle, from the command line to the worker."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd.__main__ import main
from edgekd.pipeline import single
from edgekd.values.bundle import Bundle
from edgekd.values.latency import Protocol
from tests.pipeline.rehearsed import WorkerHere

Profile = Callable[[Path], tuple[Any, str, str]]


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekd.devices.local.Child", WorkerHere)
    monkeypatch.setattr(single, "PROFILING", Protocol(launches=1, blocks=2, samples=20, warmup_ms=0.1))


@pytest.fixture
def profile(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Profile:
    """Profile a folder: exit code, stdout, stderr."""

    def run(folder: Path) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgekd", "profile", str(folder), "--json"])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code, *capsys.readouterr()

    return run


def test_a_bundle_gives_its_ledger_as_json(made_bundle: Bundle, profile: Profile):
    code, out, _ = profile(made_bundle.folder)
    assert code == 0
    data = json.loads(out)
    names = {
        "preprocess_ms",
        "copy_in_ms",
        "compute_ms",
        "copy_out_ms",
        "postprocess_ms",
        "whole_ms",
        "samples",
    }
    assert data["ledger"].keys() == names
    assert data["runtime"] == made_bundle.manifest.accepted.runtime
    assert len(data["results"]) == 1


def test_a_bundle_that_was_tampered_with_ends_with_six(made_bundle: Bundle, profile: Profile):
    with (made_bundle.folder / "model.xml").open("ab") as file:
        file.write(b"\n")
    code, out, err = profile(made_bundle.folder)
    assert (code, out) == (6, "")
    assert "model.xml" in err


def test_a_folder_that_is_no_bundle_ends_with_two(tmp_path: Path, profile: Profile):
    code, out, err = profile(tmp_path)
    assert (code, out) == (2, "")
    assert "neither a model nor a bundle" in err
