from __future__ import annotations

import errno
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekd import runner
from edgekd.errors import IntegrityError, ResourcesExhausted, UsageError
from edgekd.stages.bundle import bundle, read_manifest, summarise, unlisted
from edgekd.stages.card import model_card
from edgekd.values.artifact import Artifact, sha256_of
from edgekd.values.bundle import Bundle, BundleContent
from edgekd.values.model import Model, Precision


@pytest.fixture
def content(made: Any) -> BundleContent:
    return made.content


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_bundle_lists_the_digest_of_every_file(made_bundle: Bundle):
    files = {path.name for path in made_bundle.folder.iterdir()}
    assert files == {*made_bundle.manifest.files, "manifest.json"}
    for name, sha256 in made_bundle.manifest.files.items():
        assert sha256_of(made_bundle.folder / name) == sha256
    assert unlisted(made_bundle.folder, made_bundle.manifest) == ()


def test_the_manifest_reads_back_as_it_was_written(made_bundle: Bundle):
    assert read_manifest(made_bundle.folder) == made_bundle.manifest


def test_the_runner_in_the_bundle_is_the_one_that_evaluated(made_bundle: Bundle):
    assert (made_bundle.folder / "run.py").read_text() == runner.script("classification")


def test_the_same_content_gives_the_same_bytes(content: BundleContent, tmp_path: Path):
    one, other = (bundle(tmp_path / name, content) for name in ("one", "other"))
    assert bytes_of(one.folder) == bytes_of(other.folder)


def test_an_openvino_model_keeps_its_weights_beside_it(made_bundle: Bundle):
    assert made_bundle.manifest.accepted.files == ("model.xml", "model.bin")
    assert made_bundle.manifest.deployments[1].files == ("model.onnx",)


def test_an_int8_onnx_model_gets_a_name_of_its_own(content: BundleContent, tmp_path: Path):
    onnx = tmp_path / "other.onnx"
    onnx.write_bytes(b"another model")
    model = Model(file=Artifact.of(onnx), precision=Precision.INT8)
    second = content.shipped[1]
    shipped = replace(second, engine=replace(second.engine, model=model, precision=Precision.INT8))
    made = bundle(tmp_path / "bundle", replace(content, shipped=(shipped, *content.shipped)))
    assert [one.files[0] for one in made.manifest.deployments] == [
        "model.int8.onnx",
        "model.xml",
        "model.onnx",
    ]
    assert (made.folder / "model.int8.onnx").read_bytes() == b"another model"


def test_two_models_never_share_a_name(content: BundleContent, tmp_path: Path):
    second = content.shipped[1]
    shipped = []
    for runtime in ("onnxruntime", "openvino"):
        path = tmp_path / f"{runtime}.onnx"
        path.write_text(runtime)
        model = Model(file=Artifact.of(path), precision=Precision.INT8)
        engine = replace(second.engine, model=model, runtime=runtime, precision=Precision.INT8)
        shipped.append(replace(second, engine=engine))
    made = bundle(tmp_path / "bundle", replace(content, shipped=tuple(shipped)))
    for one in made.manifest.deployments:
        assert (made.folder / one.files[0]).read_text() == one.runtime


def test_a_newer_bundle_replaces_the_older_whole(made_bundle: Bundle, content: BundleContent):
    newer = bundle(made_bundle.folder, replace(content, name="newer", samples=None))
    assert read_manifest(newer.folder).name == "newer"
    assert not (newer.folder / "samples.npz").exists()
    assert [path.name for path in newer.folder.parent.iterdir()] == [newer.folder.name]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["copying", "moving"])
def test_a_full_disk_leaves_the_old_bundle_whole(
    made_bundle: Bundle, content: BundleContent, monkeypatch: pytest.MonkeyPatch, where: str, code: int
):
    before = bytes_of(made_bundle.folder)
    move = os.replace

    def full(source: Any, target: Any, **_: Any) -> None:
        if where == "copying" or str(source).endswith(".new"):
            raise OSError(code, os.strerror(code))
        move(source, target)

    monkeypatch.setattr(*((shutil, "copyfile") if where == "copying" else (os, "replace")), full)
    with pytest.raises(ResourcesExhausted, match="free some space"):
        bundle(made_bundle.folder, replace(content, name="newer"))
    monkeypatch.undo()
    assert bytes_of(made_bundle.folder) == before
    assert [path.name for path in made_bundle.folder.parent.iterdir()] == [made_bundle.folder.name]


def test_a_run_killed_between_the_two_moves_loses_nothing(made_bundle: Bundle, content: BundleContent):
    folder = made_bundle.folder
    folder.rename(folder.with_name(f".{folder.name}.old"))
    folder.with_name(f".{folder.name}.new").mkdir()
    spoilt = replace(content, source=Model(file=replace(content.source.file, sha256="0" * 64)))
    with pytest.raises(IntegrityError):
        bundle(folder, spoilt)
    assert read_manifest(folder) == made_bundle.manifest
    assert bundle(folder, replace(content, name="newer")).manifest.name == "newer"


def test_a_folder_of_somebody_else_is_left_alone(content: BundleContent, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(UsageError, match="not a bundle that edgekd made"):
        bundle(tmp_path, content)
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"


def test_a_file_somebody_put_into_a_bundle_is_not_lost(made_bundle: Bundle, content: BundleContent):
    (made_bundle.folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"'notes\.txt', which would be lost"):
        bundle(made_bundle.folder, content)
    assert (made_bundle.folder / "notes.txt").exists()


def test_pythons_own_cache_does_not_stand_in_the_way(made_bundle: Bundle, content: BundleContent):
    (made_bundle.folder / "__pycache__").mkdir()
    (made_bundle.folder / "__pycache__" / "run.cpython-311.pyc").write_bytes(b"")
    assert bundle(made_bundle.folder, content).manifest == made_bundle.manifest


def test_a_model_that_changed_since_it_was_measured_is_not_shipped(content: BundleContent, tmp_path: Path):
    moved = tmp_path / "student.onnx"
    moved.write_bytes(content.source.file.path.read_bytes() + b"\0")
    spoilt = replace(content, source=Model(file=replace(content.source.file, path=moved)))
    with pytest.raises(IntegrityError, match="not the file that was recorded"):
        bundle(tmp_path / "bundle", spoilt)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1}', "[" * 100_000])
def test_a_malformed_manifest_is_an_integrity_error(made_bundle: Bundle, text: str):
    (made_bundle.folder / "manifest.json").write_text(text)
    with pytest.raises(IntegrityError):
        read_manifest(made_bundle.folder)


def test_an_unknown_key_in_the_manifest_is_an_integrity_error(made_bundle: Bundle):
    path = made_bundle.folder / "manifest.json"
    path.write_text(path.read_text().replace('"seed"', '"sed"'))
    with pytest.raises(IntegrityError, match="malformed"):
        read_manifest(made_bundle.folder)


def test_a_bound_that_the_samples_cannot_give_is_absent(content: BundleContent):
    latency = content.shipped[0].latency
    few = replace(latency, samples_ms=latency.samples_ms[:50], cpu_ms=latency.cpu_ms[:50])
    assert summarise(few, 0.95).p99_upper is None
    enough = summarise(latency, 0.95)
    assert enough.p99_upper is not None
    assert enough.p50 <= enough.p90 <= enough.p95 <= enough.p99 <= enough.p99_upper


def test_the_model_card_is_inert_whatever_the_names_are(made_bundle: Bundle):
    hostile = "<script>alert(1)</script> | [a](javascript:x) ![b](http://c) `d`\n# e"
    card = model_card(
        replace(made_bundle.manifest, name=hostile, classes=(hostile, "b"), tools={hostile: hostile})
    )
    assert "<script" not in card
    assert re.search(r"(?<!\\)\]\(", card) is None
    assert "\n# e" not in card
    rows = [line for line in card.splitlines() if line.startswith("| &lt;script")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3]


def test_a_command_stays_within_its_backticks_and_its_cell(made_bundle: Bundle):
    card = model_card(replace(made_bundle.manifest, command="edgekd run `x` | y\nz"))
    assert "| command | `edgekd run 'x' / y z` |" in card
