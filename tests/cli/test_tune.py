"""--tune reaches the device from every verb that has it, and is refused where there is nothing to tune."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgekd.__main__ import main
from tests.contracts import models


@pytest.fixture(autouse=True)
def _no_board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("edgekd.devices.tuning.read_board", lambda: None)
    for name in ("CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)
    models.conv_net(tmp_path / "net.onnx")
    (tmp_path / "bundle").mkdir()


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "digits"),
        ("plan", "digits"),
        ("run", "digits", "target.tune=clocks"),
        ("profile", "net.onnx"),
        ("export", "net.onnx"),
        ("quantize", "net.onnx", "--runtime", "onnxruntime"),
        ("check", "net.onnx", "net.onnx"),
        ("requalify", "bundle"),
        ("devices", "calibrate"),
    ],
    ids=" ".join,
)
def test_a_machine_without_power_modes_is_told_before_anything_is_measured(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = () if "target.tune=clocks" in arguments else ("--tune", "clocks")
    monkeypatch.setattr(sys, "argv", ["edgekd", *arguments, *tune])
    monkeypatch.setattr("edgekd.devices.local.LocalDevice.probe", None)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 4
    told = capsys.readouterr().err
    assert "no power mode to set" in told
    assert "leave --tune out" in told


def test_a_mode_that_could_be_an_option_or_a_command_is_a_wrong_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["edgekd", "profile", "net.onnx", "--tune", "15W; reboot"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "tune cannot be '15W; reboot'" in capsys.readouterr().err
