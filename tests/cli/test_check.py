from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from edgekd.cli import app
from edgekd.cli.gate import limits_from, share_from
from edgekd.devices import Device
from edgekd.errors import UsageError
from tests.stages.gated import network, rehearsal


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Device]:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    yield from rehearsal(monkeypatch, tmp_path)


def check(tmp_path: Path, *arguments: object) -> Result:
    words = ["check", *map(str, arguments), "--profile", "rehearsal", "--out", str(tmp_path / "out")]
    return CliRunner().invoke(app, [*words, "--history", str(tmp_path / "history.sqlite")])


def two(tmp_path: Path, slowdown: str) -> tuple[Path, Path]:
    base = network(tmp_path / "base.onnx", seed=1)
    return base, network(tmp_path / "new.onnx", seed=2, slowdown=slowdown)


@pytest.mark.parametrize(
    ("slowdown", "code", "verdict"), [("1", 0, "PASS"), ("1.06", 1, "FAIL"), ("0.9", 0, "IMPROVED")]
)
def test_the_exit_code_says_the_verdict(tmp_path: Path, slowdown: str, code: int, verdict: str):
    found = check(tmp_path, *two(tmp_path, slowdown), "--json")
    assert found.exit_code == code
    data = json.loads(found.stdout)
    assert data["verdict"] == verdict
    assert {"ratio", "ratio_low", "ratio_high", "margin", "pairs", "seconds", "conditions"} <= set(data)
    assert {"path", "sha256", "p50_ms"} <= set(data["base"])


def test_a_machine_that_throttles_ends_with_4(tmp_path: Path):
    base = network(tmp_path / "base.onnx", seed=1)
    found = check(tmp_path, base, network(tmp_path / "hot.onnx", seed=2, always_throttled="1"))
    assert found.exit_code == 4
    assert "ENVIRONMENT" in found.stdout


@pytest.mark.parametrize(("given", "code"), [((), 3), (("--inconclusive", "warn"), 0)])
def test_no_answer_ends_as_it_was_asked_to(tmp_path: Path, given: tuple[str, ...], code: int):
    found = check(tmp_path, *two(tmp_path, "1.03"), "--max-minutes", "0.000001", *given)
    assert found.exit_code == code
    assert "INCONCLUSIVE" in found.stdout
    assert ("warning" in found.stderr) == bool(given)


def test_annotations_go_to_stderr_and_data_to_stdout(tmp_path: Path):
    found = check(tmp_path, *two(tmp_path, "1.06"), "--json", "--annotate")
    assert "::error" in found.stderr
    assert json.loads(found.stdout)["verdict"] == "FAIL"


def test_a_baseline_is_made_and_then_held_against(tmp_path: Path):
    base, slower = two(tmp_path, "1.5")
    file = tmp_path / "baseline.json"
    assert check(tmp_path, base, "--baseline", file, "--update").exit_code == 0
    assert check(tmp_path, base, "--baseline", file).exit_code == 0
    assert check(tmp_path, slower, "--baseline", file).exit_code == 1


@pytest.mark.parametrize(("text", "share"), [("3%", 0.03), ("0.5%", 0.005), ("0.03", 0.03)])
def test_a_share_is_read_with_and_without_a_percent_sign(text: str, share: float):
    assert share_from(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["3", "0", "-1%", "100%", "nan", "three", ""])
def test_what_is_no_share_is_refused(text: str):
    with pytest.raises(UsageError, match="is not a share"):
        share_from(text)


def test_limits_are_read_by_percentile():
    assert limits_from(["p99=2.0", "p50=1"]) == {"p99": 2.0, "p50": 1.0}


@pytest.mark.parametrize("text", ["p99", "p98=1", "p99=0", "p99=fast", "=1"])
def test_what_is_no_limit_is_refused(text: str):
    with pytest.raises(UsageError, match="is not PERCENTILE=MS"):
        limits_from([text])
