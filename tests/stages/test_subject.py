from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.errors import IntegrityError
from edgekd.stages.subject import model_at
from edgekd.values.artifact import Artifact
from tests.contracts import models
from tests.pipeline.rehearsed import WorkerHere


def test_an_onnx_is_named_with_the_files_that_hold_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("edgekd.devices.external.Child", WorkerHere)
    found = model_at(models.spread_net(tmp_path / "m.onnx"))
    assert found.external == tuple(Artifact.of(tmp_path / name) for name in models.SPREAD)
    assert found.size_bytes == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    (tmp_path / "w e.data").unlink()
    with pytest.raises(IntegrityError, match="no plain file"):
        model_at(tmp_path / "m.onnx")
    assert model_at(models.conv_net(tmp_path / "whole.onnx")).external == ()
