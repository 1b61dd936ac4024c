from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekd.errors import IntegrityError
from edgekd.stages.itemise import check_digests, itemise
from edgekd.values.artifact import Artifact, sha256_of
from edgekd.values.bundle import Bundle
from edgekd.values.ledger import Ledger
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.preprocess import Preprocess
from tests.values.test_ledger import LEDGER


class Recording:
    """A device that keeps what a ledger was asked of."""

    images: NDArray[np.uint8]
    recipe: Preprocess

    def ledger(self, engine: Engine, images: Artifact, recipe: Preprocess) -> Ledger:
        self.images, self.recipe = np.load(images.verified(), allow_pickle=False), recipe
        return LEDGER


def asked(folder: Path, scratch: Path) -> Recording:
    """Itemise a bundle's portable model."""
    device: Any = Recording()
    model = Model(file=Artifact.of(folder / "model.onnx"))
    engine = Engine(model=model, runtime="rehearsal", precision=Precision.FP32)
    assert itemise(folder, engine, device, scratch) == LEDGER
    return device


def relist(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    """Change the digests of a manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest["files"])
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_requests_are_about_the_first_sample_images_by_the_bundles_own_recipe(
    made: Any, made_bundle: Bundle, tmp_path: Path
):
    device = asked(made_bundle.folder, tmp_path / "scratch")
    np.testing.assert_array_equal(device.images, made.images[:8])
    assert device.recipe == made.content.preprocess


def test_without_samples_they_are_about_noise_of_the_right_size(made_bundle: Bundle, tmp_path: Path):
    (made_bundle.folder / "samples.npz").unlink()
    relist(made_bundle.folder, lambda files: files.pop("samples.npz"))
    images = asked(made_bundle.folder, tmp_path / "scratch").images
    assert images.shape == (8, 8, 8, 1)
    assert len({image.tobytes() for image in images}) == 8


@pytest.mark.parametrize("name", ["model.onnx", "preprocess.json", "samples.npz", "run.py", "MODEL_CARD.md"])
def test_any_file_that_is_not_what_was_bundled_is_refused(made_bundle: Bundle, name: str):
    check_digests(made_bundle.folder)
    with (made_bundle.folder / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(IntegrityError, match=name):
        check_digests(made_bundle.folder)


def test_a_link_in_place_of_a_file_is_refused(made_bundle: Bundle, tmp_path: Path):
    path = made_bundle.folder / "samples.npz"
    path.replace(tmp_path / "elsewhere.npz")
    path.symlink_to(tmp_path / "elsewhere.npz")
    with pytest.raises(IntegrityError, match="symbolic link"):
        check_digests(made_bundle.folder)


def _text(path: Path) -> None:
    path.write_text("no archive")


def _nothing(path: Path) -> None:
    np.savez(path, labels=np.zeros(3))


def _floats(path: Path) -> None:
    np.savez(path, images=np.zeros((2, 8, 8, 1), np.float32), logits=np.zeros((2, 4), np.float32))


def _pickles(path: Path) -> None:
    np.savez(path, images=np.array([{}], dtype=object), logits=np.zeros((1, 4), np.float32))


@pytest.mark.parametrize("spoil", [_text, _nothing, _floats, _pickles])
def test_samples_that_were_bundled_unreadable_are_an_integrity_error(
    made_bundle: Bundle, tmp_path: Path, spoil: Callable[[Path], None]
):
    path = made_bundle.folder / "samples.npz"
    spoil(path)
    relist(made_bundle.folder, lambda files: files.update({"samples.npz": sha256_of(path)}))
    with pytest.raises(IntegrityError, match=r"samples\.npz cannot be used"):
        asked(made_bundle.folder, tmp_path / "scratch")


def test_a_recipe_that_cannot_be_read_is_an_integrity_error(made_bundle: Bundle, tmp_path: Path):
    path = made_bundle.folder / "preprocess.json"
    path.write_text("{}")
    relist(made_bundle.folder, lambda files: files.update({"preprocess.json": sha256_of(path)}))
    with pytest.raises(IntegrityError, match=r"preprocess\.json"):
        asked(made_bundle.folder, tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()
