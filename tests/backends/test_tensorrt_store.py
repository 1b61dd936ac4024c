from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgekd.backends import draws, trt_store
from edgekd.backends.trt_store import Store, private_store
from edgekd.errors import IntegrityError
from tests.contracts import models


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return private_store(tmp_path)


def test_what_was_written_is_read(store: Store):
    assert store.read("plan") is None
    store.write("plan", b"one")
    store.write("plan", b"two")
    assert store.read("plan") == b"two"
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in store.folder.iterdir()} == {0o600}


def test_a_thousand_flipped_bits_are_a_thousand_refusals(store: Store):
    chance, path = random.Random(0), store.folder / "plan"  # noqa: S311 - which bits to flip
    store.write("plan", os.urandom(400))
    sealed = path.read_bytes()
    for _ in range(1000):
        at, bit = chance.randrange(len(sealed)), chance.randrange(8)
        path.write_bytes(sealed[:at] + bytes([sealed[at] ^ 1 << bit]) + sealed[at + 1 :])
        assert store.read("plan") is None
        assert not path.exists()
    path.write_bytes(sealed)
    assert store.read("plan") is not None


@pytest.mark.parametrize("size", [0, 1, 15, 16, 47, 48, 60])
def test_a_torn_file_is_refused(store: Store, size: int):
    store.write("plan", b"x" * 20)
    path = store.folder / "plan"
    path.write_bytes(path.read_bytes()[:size])
    assert store.read("plan") is None


def test_a_seal_holds_for_one_name_and_one_device(store: Store, tmp_path: Path):
    store.write("plan-of-a", b"engine")
    (store.folder / "plan-of-b").write_bytes((store.folder / "plan-of-a").read_bytes())
    assert store.read("plan-of-b") is None
    elsewhere = private_store(tmp_path / "elsewhere")
    elsewhere.write("warm", b"")  # makes its key
    (elsewhere.folder / "plan-of-a").write_bytes((store.folder / "plan-of-a").read_bytes())
    assert elsewhere.read("plan-of-a") is None


def test_a_key_that_others_can_read_is_refused(store: Store):
    store.write("plan", b"engine")
    (store.folder / "key").chmod(0o644)
    with pytest.raises(IntegrityError, match="key"):
        store.read("plan")


def test_a_link_in_place_of_the_key_is_refused(store: Store, tmp_path: Path):
    (tmp_path / "known").write_bytes(bytes(32))
    (tmp_path / "known").chmod(0o600)
    (store.folder / "key").symlink_to(tmp_path / "known")
    with pytest.raises(IntegrityError, match="key"):
        store.write("plan", b"engine")


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "tensorrt").symlink_to(tmp_path / "real")
    with pytest.raises(IntegrityError, match="not a folder of yours"):
        private_store(tmp_path)


def test_what_was_used_longest_ago_goes_first(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trt_store, "_MOST_BYTES", 500)
    for at, name in enumerate("abc"):
        store.write(name, bytes(200))
        os.utime(store.folder / name, (at, at))
    store.read("a")
    store.write("d", bytes(200))
    kept = {path.name for path in store.folder.iterdir()}
    assert {"key", "a", "d"} <= kept
    assert "b" not in kept


def test_the_folder_is_the_devices_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert private_store().folder == tmp_path / "xdg" / "edgekd" / "tensorrt"
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "board"))
    assert private_store().folder == tmp_path / "board" / "tensorrt"


def test_processes_that_begin_together_agree_on_one_key(tmp_path: Path):
    program = (
        "import sys; from pathlib import Path; from edgekd.backends.trt_store import private_store; "
        "store = private_store(Path(sys.argv[1])); store.write(sys.argv[2], b'engine')"
    )
    names = [str(at) for at in range(4)]
    running = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name]) for name in names]
    assert [one.wait(timeout=60) for one in running] == [0] * 4
    assert [private_store(tmp_path).read(name) for name in names] == [b"engine"] * 4


def test_a_numbered_copy_is_the_same_model_with_another_digest(tmp_path: Path):
    import onnx

    path = models.conv_net(tmp_path / "m.onnx")
    assert draws.draw_of(path) is None
    digests = set()
    for draw in (1, 7, 42):
        copy = tmp_path / f"{draw}.onnx"
        copy.write_bytes(draws.numbered(path.read_bytes(), draw))
        model = onnx.load(str(copy))
        onnx.checker.check_model(model, full_check=True)
        assert {one.key: one.value for one in model.metadata_props} == {"edgekd.draw": str(draw)}
        assert model.graph == onnx.load(str(path)).graph
        assert draws.draw_of(copy) == draw
        digests.add(copy.read_bytes())
    assert len(digests) == 3


@pytest.mark.parametrize("draw", [0, -1, 100])
def test_a_number_out_of_range_is_refused(draw: int):
    with pytest.raises(ValueError, match="numbered 1 to 99"):
        draws.numbered(b"", draw)


@pytest.mark.parametrize("content", [b"", b"r", b"edgekd.draw\x12\x011", b"\x00" * 1000])
def test_what_only_resembles_a_number_is_none(tmp_path: Path, content: bytes):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert draws.draw_of(path) is None
