from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgekd import tasks
from edgekd.errors import ConfigError, DataError, ResourcesExhausted
from edgekd.tasks import ImageClassification, decoding
from edgekd.values.job import TaskSection
from tests.contracts.task import ClassContract

CIFAR = Path(__file__).resolve().parents[3] / "shared/data/cifar10/cifar10_jpeg.npz"


def load(data: Path | str, tmp_path: Path, **settings: object) -> ImageClassification:
    section = TaskSection(data=str(data), **settings)
    return tasks.load(section, beside=tmp_path, cache=tmp_path / "cache")


def draw(path: Path, seed: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def folders(root: Path, count: int = 6, classes: tuple[str, ...] = ("ant", "bee"), **how: object) -> Path:
    for number, name in enumerate(classes):
        for at in range(count):
            draw(root / name / f"{at}.png", 100 * number + at, **how)
    return root


def arrays(path: Path, **content: object) -> Path:
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    np.savez(
        path, **{"images": rng.integers(0, 256, (30, 8, 8), dtype=np.uint8), "labels": labels, **content}
    )
    return path


class TestDigits(ClassContract):
    def task(self) -> ImageClassification:
        return tasks.load(TaskSection(data="digits", flip=False), beside=Path(), cache=Path())

    again = task

    def test_it_is_divided_into_a_fifth_for_the_test_and_a_tenth_of_the_rest(self):
        task = self.task()
        assert (len(task.train), len(task.validation), len(task.test)) == (1293, 145, 359)
        assert task.train.samples.max() == 255


class TestArrays(ClassContract):
    def task(self) -> ImageClassification:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (90, 9, 12, 3), dtype=np.uint8)
        return tasks.from_arrays(images, [at % 3 for at in range(90)], classes=("a", "b", "c"))

    again = task


class TestFolders(ClassContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.root = tmp_path
        folders(tmp_path / "images", 8, ("ant", "bee", "cow"))

    def task(self) -> ImageClassification:
        return load("images", self.root)

    def again(self) -> ImageClassification:
        for cached in (self.root / "cache").glob("*"):
            cached.unlink()
        return load("images", self.root)

    def test_a_change_of_one_pixel_changes_the_fingerprint(self):
        before = self.task().fingerprint
        path = self.root / "images/ant/0.png"
        with Image.open(path) as image:
            changed = image.convert("RGB")
        changed.putpixel((0, 0), tuple(255 - value for value in changed.getpixel((0, 0))))
        changed.save(path)
        assert self.task().fingerprint != before

    def test_decoded_images_are_kept_and_used_again(self, monkeypatch: pytest.MonkeyPatch):
        first = self.task()
        monkeypatch.setattr(decoding, "_write", None)
        assert self.task().fingerprint == first.fingerprint
        assert isinstance(self.task().train.samples, np.memmap)


def test_another_split_another_setting_or_another_label_is_another_fingerprint(tmp_path: Path):
    path = arrays(tmp_path / "a.npz")
    kinds = [
        load(path, tmp_path),
        load(path, tmp_path, validation=0.3),
        load(path, tmp_path, crop=1),
        load(path, tmp_path, mean=(0.5,), std=(0.2,)),
        tasks.load(TaskSection(data=str(path)), beside=tmp_path, cache=tmp_path, seed=1),
        load(arrays(tmp_path / "b.npz", labels=(np.arange(30) + 1) % 3), tmp_path),
    ]
    assert len({task.fingerprint for task in kinds}) == len(kinds)


def test_the_place_of_the_data_does_not_enter_the_fingerprint(tmp_path: Path):
    first, second = folders(tmp_path / "here"), folders(tmp_path / "there")
    assert load(first, tmp_path).fingerprint == load(second, tmp_path).fingerprint


def test_a_split_that_the_data_brings_decides_the_test_images(tmp_path: Path):
    split = (np.arange(30) >= 21).astype(np.uint8)
    task = load(arrays(tmp_path / "a.npz", split=split), tmp_path)
    assert len(task.test) == 9
    assert len(task.train) + len(task.validation) == 21


def test_validation_images_can_come_from_the_test_part(tmp_path: Path):
    split = (np.arange(30) >= 15).astype(np.uint8)
    path = arrays(tmp_path / "a.npz", split=split)
    task = load(path, tmp_path, validation_from="test", validation=0.4)
    assert (len(task.train), len(task.validation), len(task.test)) == (15, 6, 9)


def test_train_and_test_folders_are_a_split(tmp_path: Path):
    folders(tmp_path / "images/train", 5)
    folders(tmp_path / "images/test", 2)
    task = load("images", tmp_path)
    assert task.classes == ("ant", "bee")
    assert len(task.test) == 4
    assert len(task.train) + len(task.validation) == 10


def test_images_of_mixed_sizes_are_resized_to_the_median_or_to_the_resolution_given(tmp_path: Path):
    folders(tmp_path / "images", 4, size=(20, 10))
    for at in range(5):
        draw(tmp_path / f"images/bee/big{at}.jpg", at, (40, 50))
    assert load("images", tmp_path).train.samples.shape[1] == 10
    assert load("images", tmp_path, resolution=24).train.samples.shape[1] == 24


def test_small_images_stay_small_when_the_teacher_wants_larger_ones(tmp_path: Path):
    task = load(folders(tmp_path / "images"), tmp_path, resolution=48)
    assert (task.train.samples.shape[1], task.resolution) == (12, 48)
    assert task.inputs(task.test, task.resolution).shape[-1] == 48


def test_grey_images_give_one_channel_and_one_coloured_one_makes_three(tmp_path: Path):
    root = folders(tmp_path / "images", mode="L")
    assert load(root, tmp_path).channels == 1
    draw(root / "ant/colour.png", 7)
    assert load(root, tmp_path).channels == 3


def test_jpegs_back_to_back_are_decoded(tmp_path: Path):
    blobs = [draw(tmp_path / f"j/{at}.jpg", at).read_bytes() for at in range(20)]
    offset = np.cumsum([0, *map(len, blobs)])
    content = {"jpeg": np.frombuffer(b"".join(blobs), np.uint8), "offset": offset, "label": np.arange(20) % 2}
    np.savez(tmp_path / "a.npz", **content, classes=np.array(["ant", "bee"]))
    task = load("a.npz", tmp_path)
    assert task.classes == ("ant", "bee")
    assert len(task.train) + len(task.validation) + len(task.test) == 20
    np.savez(tmp_path / "b.npz", **{**content, "offset": offset[::-1]})
    with pytest.raises(DataError, match="do not cut its JPEG bytes"):
        load("b.npz", tmp_path)


def test_a_live_data_set_gives_the_same_task_as_its_arrays():
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    labels = [at % 3 for at in range(30)]
    pictures = [Image.fromarray(image) for image in images]
    tensors = [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in images]
    expected = tasks.from_arrays(images, labels).fingerprint
    for items in (list(images), pictures, tensors):
        assert tasks.from_dataset(list(zip(items, labels))).fingerprint == expected


def test_a_live_data_set_that_is_normalised_already_is_refused():
    items = [(torch.full((3, 8, 8), -1.0), at % 2) for at in range(10)]
    with pytest.raises(DataError, match="already normalised"):
        tasks.from_dataset(items)


def test_the_mean_and_spread_are_those_of_the_training_images(tmp_path: Path):
    task = load(arrays(tmp_path / "a.npz"), tmp_path)
    inputs = task.inputs(task.train, 8)
    assert abs(inputs.mean()) < 1e-4
    assert abs(inputs.std() - 1) < 1e-4


def test_images_of_one_flat_colour_can_be_normalised(tmp_path: Path):
    task = load(arrays(tmp_path / "a.npz", images=np.full((30, 8, 8), 7, np.uint8)), tmp_path)
    assert np.isfinite(task.inputs(task.train, 8)).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"labels": np.zeros(30, np.int64)}, "one class"),
        ({"labels": np.arange(30) % 3 - 1}, "out of range"),
        ({"classes": np.array(["a", "b"])}, "out of range"),
        ({"classes": np.array(["a", "b", "c", "d"])}, "class 'd' of .* is empty"),
        ({"labels": (np.arange(30) >= 28).astype(int)}, "too few images"),
        ({"labels": np.arange(30) / 3}, "float64"),
        ({"labels": np.arange(29) % 3}, "30 images and 29 labels"),
        ({"images": np.zeros((30, 8, 8), np.float32)}, "float32"),
        ({"images": np.zeros((30, 8, 8, 7), np.uint8)}, "shape"),
        ({"images": np.zeros((0, 8, 8), np.uint8), "labels": np.zeros(0, int)}, "no images"),
        ({"split": np.full(30, 2)}, "split"),
        ({"split": np.zeros(30, int)}, "leaves no images"),
        ({"labels": np.array([{"run": "me"}] * 30, object)}, "cannot be read"),
    ],
)
def test_arrays_that_cannot_serve_are_refused(tmp_path: Path, content: dict[str, object], words: str):
    with pytest.raises(DataError, match=words) as caught:
        load(arrays(tmp_path / "a.npz", **content), tmp_path)
    assert caught.value.exit_code == 2


def test_an_npz_that_is_none_or_holds_other_names_is_refused(tmp_path: Path):
    (tmp_path / "a.npz").write_bytes(b"not a zip")
    with pytest.raises(DataError, match="cannot be read"):
        load("a.npz", tmp_path)
    np.savez(tmp_path / "b.npz", pictures=np.zeros(3))
    with pytest.raises(DataError, match="holds pictures"):
        load("b.npz", tmp_path)


def test_a_broken_image_is_named(tmp_path: Path):
    root = folders(tmp_path / "images")
    whole = (root / "bee/3.png").read_bytes()
    (root / "bee/3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"bee/3\.png"):
        load(root, tmp_path)
    (root / "bee/3.png").write_bytes(b"GIF89a nonsense")
    with pytest.raises(DataError, match=r"bee/3\.png"):
        load(root, tmp_path)


def test_an_image_bomb_is_refused_from_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = folders(tmp_path / "images")
    monkeypatch.setattr(decoding, "_PIXEL_LIMIT", 100)
    with pytest.raises(DataError, match="too large to decode safely"):
        load(root, tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"not an image that can be read"):
        load(root, tmp_path)


def test_folders_that_cannot_serve_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="there is no"):
        load("nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        load("empty", tmp_path)
    with pytest.raises(DataError, match="one class, 'ant'"):
        load(folders(tmp_path / "one", classes=("ant",)), tmp_path)
    folders(tmp_path / "hollow")
    (tmp_path / "hollow/cow").mkdir()
    with pytest.raises(DataError, match=r"class 'cow' of .* is empty"):
        load("hollow", tmp_path)
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"is not an \.npz file"):
        load("data.csv", tmp_path)


def test_a_mean_of_the_wrong_length_is_a_configuration_error(tmp_path: Path):
    path = arrays(tmp_path / "a.npz")
    with pytest.raises(ConfigError, match="mean has 3 values, the images have 1"):
        load(path, tmp_path, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def test_a_full_disk_says_so_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    root = folders(tmp_path / "images")
    monkeypatch.setattr(decoding.npy, "write_array_header_1_0", full)
    with pytest.raises(ResourcesExhausted):
        load(root, tmp_path)
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.skipif(not CIFAR.exists(), reason=f"{CIFAR} is not here")
@pytest.mark.slow
def test_cifar_10_keeps_the_split_it_brings(tmp_path: Path):
    task = load(CIFAR, tmp_path)
    assert (len(task.train), len(task.validation), len(task.test)) == (45000, 5000, 10000)
    assert dataclasses.astuple(task.preprocess(32))[:2] == (32, 32)
