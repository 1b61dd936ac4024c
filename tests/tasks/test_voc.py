from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekd import tasks
from edgekd.errors import ConfigError, DataError
from edgekd.tasks import boxes
from edgekd.tasks.voc import read_voc
from edgekd.values.job import TaskSection

BOX = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
    "<xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"
)


def box(name: str, *corners: object, difficult: int = 0) -> str:
    return BOX.format(*corners, name=name, difficult=difficult)


def place(root: Path, stem: str, *objects: str, size: tuple[int, int] = (40, 20), head: str = "") -> Path:
    (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
    (root / "Annotations").mkdir(exist_ok=True)
    pixels = np.random.default_rng(len(stem)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "JPEGImages" / f"{stem}.png")
    path = root / "Annotations" / f"{stem}.xml"
    path.write_text(
        f"{head}<annotation><size><width>1</width></size>{''.join(objects)}</annotation>", encoding="utf-8"
    )
    return path


def test_boxes_are_shares_of_the_image_counted_from_pixel_one(tmp_path: Path):
    place(tmp_path, "a", box("cat", 1, 1, 20, 10), box("ant", 21, 11, 40, 20, difficult=1))
    found = read_voc(tmp_path)
    assert found.classes == ("ant", "cat")
    np.testing.assert_allclose(found.boxes[0], [[1, 0, 0, 0.5, 0.5, 0], [0, 0.5, 0.5, 1, 1, 1]])


def test_boxes_are_cut_at_the_edge_and_those_without_area_are_passed_over(tmp_path: Path):
    place(tmp_path, "a", box("cat", 31, 1, 60, 99), box("cat", 9, 9, 8, 5), box("cat", 50, 1, 60, 9))
    np.testing.assert_allclose(read_voc(tmp_path).boxes[0], [[0, 0.75, 0, 1, 1, 0]])


def test_the_parts_of_an_object_are_no_objects(tmp_path: Path):
    head = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    place(tmp_path, "a", box("cat", 1, 1, 20, 10).replace("</object>", f"{head}</object>"))
    found = read_voc(tmp_path)
    assert found.classes == ("cat",)
    np.testing.assert_allclose(found.boxes[0][:, 1:5], [[0, 0, 0.5, 0.5]])


def test_image_sets_divide_the_images_and_leave_out_the_rest(tmp_path: Path):
    for stem in ("a", "bb", "ccc", "dddd"):
        place(tmp_path, stem, box("cat", 1, 1, 20, 10))
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    for part, stem in (("train", "bb"), ("val", "a"), ("test", "dddd")):
        (tmp_path / f"ImageSets/Main/{part}.txt").write_text(f"{stem}\n", encoding="utf-8")
    found = read_voc(tmp_path)
    assert found.roles.tolist() == [1, 0, 2]
    assert [found.images.name_of(at)[-6:] for at in range(3)] == ["/a.png", "bb.png", "dd.png"]


@pytest.mark.parametrize(
    ("head", "objects", "cause"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]>', box("cat", 1, 1, 9, 9), "document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd">', box("cat", 1, 1, 9, 9), "document type"),
        ("", box("cat", 1, 1, "nan", 9), "not finite"),
        ("", box("cat", 1, 1, "", 9), "could not convert"),
        ("", box("", 1, 1, 9, 9), "is called"),
        ("", box("c\x7fat", 1, 1, 9, 9), "is called"),
        ("", box("c" * 300, 1, 1, 9, 9), "is called"),
        ("", "<object><name>cat</name></object>", "xmin"),
        ("", "<a>" * 40 + "</a>" * 40, "deep"),
        ("", box("cat", 1, 1, 9, 9) * 1001, "more than 1000"),
        ("", "<object>", "mismatched"),
        ('<?xml version="1.0" encoding="nonsense"?>', box("cat", 1, 1, 9, 9), "encoding"),
    ],
)
def test_an_annotation_that_is_malformed_or_hostile_is_refused(
    tmp_path: Path, head: str, objects: str, cause: str
):
    path = place(tmp_path, "a", objects, head=head)
    with pytest.raises(DataError, match=r"no annotation that can be read") as refused:
        read_voc(tmp_path)
    assert cause in refused.value.cause
    assert str(path) in refused.value.what


def test_a_huge_annotation_is_not_read(tmp_path: Path):
    place(tmp_path, "a", box("cat", 1, 1, 9, 9) + " " * (1 << 20))
    with pytest.raises(DataError, match="larger than 1 MiB"):
        read_voc(tmp_path)


def test_a_folder_without_annotated_images_or_a_broken_image_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no annotated images"):
        read_voc(tmp_path)
    place(tmp_path, "a", box("cat", 1, 1, 9, 9))
    (tmp_path / "JPEGImages/a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="not an image"):
        read_voc(tmp_path)


def test_annotations_without_objects_are_refused(tmp_path: Path):
    place(tmp_path, "a")
    with pytest.raises(DataError, match="no objects"):
        read_voc(tmp_path)


def load(root: Path, **settings: object) -> tasks.Task:
    section = TaskSection(data=str(root), kind="detection", **settings)
    return tasks.load(section, beside=root, cache=root / "cache")


def several(root: Path, count: int = 12) -> Path:
    for at in range(count):
        place(root, "x" * (at + 1), box("cat", 1, 1, 20, 10), box("ant", 21, 11, 39, 19))
    return root


def test_a_folder_becomes_a_task_of_squares(tmp_path: Path):
    task = load(several(tmp_path), resolution=64)
    assert (len(task.train), len(task.validation), len(task.test)) == (9, 1, 2)
    assert task.train.samples.shape == (9, 64, 64, 3)
    assert task.train.labels.shape == (9, 2, boxes.COLUMNS)
    assert task.answer_shape(64) == (2 + 4 * 8, 16, 16)


def test_a_side_that_maps_do_not_divide_is_refused_before_anything_is_read(tmp_path: Path):
    with pytest.raises(ConfigError, match="multiple of 32") as refused:
        load(several(tmp_path), resolution=100)
    assert "96" in refused.value.mend


def test_a_class_that_no_training_image_shows_is_refused(tmp_path: Path):
    for stem, name in (("a", "cat"), ("bb", "dog"), ("ccc", "cat")):
        place(tmp_path, stem, box(name, 1, 1, 20, 10))
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    for part, stem in (("train", "a"), ("val", "ccc"), ("test", "bb")):
        (tmp_path / f"ImageSets/Main/{part}.txt").write_text(stem, encoding="utf-8")
    with pytest.raises(DataError, match="'dog'"):
        load(tmp_path)


def test_data_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read") as refused:
        load(tmp_path / "nowhere")
    assert "digits-scenes" in refused.value.mend
