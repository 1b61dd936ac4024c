from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.devices.external import brought_along, external_files
from edgekd.errors import IntegrityError, ModelError
from edgekd.values.artifact import Artifact
from edgekd.values.model import Model
from tests.contracts import models
from tests.pipeline.rehearsed import WorkerHere


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekd.devices.external.Child", WorkerHere)


def test_files_of_weights_are_found_by_name_each_with_its_own_digest(tmp_path: Path):
    found = external_files(models.spread_net(tmp_path / "m.onnx"))
    assert found == tuple(Artifact.of(tmp_path / name) for name in models.SPREAD)
    assert found[0].sha256 != found[1].sha256


def test_a_whole_model_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edgekd.devices.external.Child", None)
    assert external_files(models.conv_net(tmp_path / "m.onnx")) == ()
    assert external_files(tmp_path / "absent.onnx") == ()


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path):
    (tmp_path / "in").mkdir()
    path = models.spread_net(tmp_path / "in" / "m.onnx")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "in" / "w e.data").unlink()
    (tmp_path / "in" / "w e.data").symlink_to(tmp_path / "secret")
    with pytest.raises(IntegrityError, match="no plain file"):
        external_files(path)


def test_weights_that_are_not_there_are_named(tmp_path: Path):
    path = models.spread_net(tmp_path / "m.onnx")
    (tmp_path / "w e.data").unlink()
    with pytest.raises(IntegrityError, match=r"w e\.data"):
        external_files(path)


def test_nonsense_that_speaks_of_a_location_is_a_model_error(tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(b"\xff location \xff")
    with pytest.raises(ModelError):
        external_files(tmp_path / "m.onnx")


def test_what_a_compiled_file_still_takes_is_brought_along_and_nothing_else(tmp_path: Path):
    (tmp_path / "made").mkdir()
    of = models.spread_engine(models.spread_net(tmp_path / "m.onnx")).model
    whole = Model(file=Artifact.of(models.conv_net(tmp_path / "made" / "whole.onnx")))
    assert brought_along(whole, of).external == ()
    (tmp_path / "made" / "same.onnx").write_bytes(of.file.path.read_bytes())
    still = brought_along(Model(file=Artifact.of(tmp_path / "made" / "same.onnx")), of)
    assert [one.verified().relative_to(tmp_path / "made") for one in still.external] == [
        Path(name) for name in models.SPREAD
    ]


def test_a_compiled_file_that_names_weights_of_its_own_is_refused(tmp_path: Path):
    of = models.spread_engine(models.spread_net(tmp_path / "m.onnx")).model
    made = Model(file=Artifact.of(models.spread_net(tmp_path / "made.onnx", names=("other.bin",))))
    with pytest.raises(IntegrityError, match="was not compiled as it is"):
        brought_along(made, replace(of, external=of.external[:1]))
