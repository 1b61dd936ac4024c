"""Read a data set in the form of PASCAL VOC: JPEGImages/, Annotations/*.xml, and perhaps ImageSets/Main/*.txt."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekd.errors import DataError
from edgekd.tasks.boxes import COLUMNS
from edgekd.tasks.decoding import FORMATS, Encoded
from edgekd.tasks.folders import SUFFIXES

log = logging.getLogger(__name__)

_LIMIT_BYTES = 1 << 20  # of one annotation
_LIMIT_OBJECTS = 1000  # in one image
_LIMIT_DEPTH = 16  # of elements in each other
_LIMIT_TEXT = 200  # letters of what is read
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ROLES = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """Images with boxes, before they are divided."""

    images: Encoded
    boxes: list[NDArray[np.float32]]  # an image: (m, COLUMNS), in shares of its sides
    classes: tuple[str, ...]
    roles: NDArray[np.int64]  # (N,): 0 train, 1 validation, 2 test


@dataclass(kw_only=True)
class _Reader:
    """What of an annotation has been read so far: expat calls these methods."""

    place: list[str] = field(default_factory=list)
    text: str = ""
    objects: list[dict[str, str]] = field(default_factory=list)

    def start(self, name: str, _: dict[str, str]) -> None:
        self.place.append(name)
        self.text = ""
        if len(self.place) > _LIMIT_DEPTH:
            raise ValueError(f"elements lie more than {_LIMIT_DEPTH} deep")
        if self.place[1:] == ["object"]:
            self.objects.append({})
            if len(self.objects) > _LIMIT_OBJECTS:
                raise ValueError(f"it names more than {_LIMIT_OBJECTS} objects")

    def end(self, name: str) -> None:
        # Parts of an object lie below it, such as a person's head: they are objects of no class of ours.
        if self.place[1:-1] in (["object"], ["object", "bndbox"]):
            self.objects[-1][name] = self.text.strip()
        self.place.pop()
        self.text = ""

    def letters(self, text: str) -> None:
        self.text = (self.text + text)[: _LIMIT_TEXT + 1]

    def refuse(self, *_: object) -> None:
        raise ValueError("it declares a document type, which may hold entities")


def read_voc(root: Path) -> Annotated:
    """List the images of `root` that have annotations, decoding none of them.

    ImageSets/Main/train.txt, val.txt and test.txt divide them where they are there; images that they do not name are
    then left out. Boxes are cut at the image's edge; one without area is passed over.

    Raises:
        DataError: it is not of this form, or an annotation is malformed.

    """
    annotations = sorted((root / "Annotations").glob("*.xml"))
    pictures = _pictures(root / "JPEGImages")
    if not annotations or not pictures:
        raise DataError(
            f"{root} holds no annotated images",
            mend="give a folder in the form of PASCAL VOC: JPEGImages/1.jpg with Annotations/1.xml, and so on",
        )
    roles = _roles(root / "ImageSets" / "Main")
    chosen = [path for path in annotations if path.stem in pictures and (not roles or path.stem in roles)]
    if len(chosen) < len(annotations):
        log.info("%d annotations have no image, or no part in ImageSets", len(annotations) - len(chosen))
    found = [_objects(path) for path in chosen]
    classes = tuple(sorted({one["name"] for objects in found for one in objects}))
    if not classes:
        raise DataError(f"the annotations of {root} name no objects")
    files = [pictures[path.stem] for path in chosen]
    return Annotated(
        images=_encoded(root, files),
        boxes=[_boxes(*pair, classes) for pair in zip(found, files, chosen)],
        classes=classes,
        roles=np.array([roles.get(path.stem, 0) for path in chosen], np.int64),
    )


def _objects(path: Path) -> list[dict[str, str]]:
    """Read an annotation; nothing outside it is ever opened, and entities are refused with their declarations."""
    if path.stat().st_size > _LIMIT_BYTES:
        raise DataError(f"{path} is larger than {_LIMIT_BYTES >> 20} MiB")
    reader, parser = _Reader(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = reader.letters, reader.refuse
    try:
        parser.Parse(path.read_bytes(), True)
        for one in reader.objects:
            _check(one)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise DataError(
            f"{path} is no annotation that can be read",
            cause=f"{type(error).__name__}: {error}"[:200],
            mend="each <object> needs a <name> and a <bndbox> with xmin, ymin, xmax and ymax; or remove the file",
        ) from error
    return reader.objects


def _check(one: dict[str, str]) -> None:
    name = one["name"]
    if not name or len(name) > _LIMIT_TEXT or not name.isprintable():
        raise ValueError(f"an object is called {name[:40]!r}")
    if not all(math.isfinite(float(one[corner])) for corner in _CORNERS):
        raise ValueError(f"a box of {name!r} is not finite")


def _boxes(
    objects: list[dict[str, str]], picture: Path, annotation: Path, classes: tuple[str, ...]
) -> NDArray[np.float32]:
    """Return (m, COLUMNS); VOC counts pixels from 1, and a box holds both its corners."""
    width, height = _size(picture)
    rows = np.zeros((len(objects), COLUMNS), np.float32)
    for row, one in zip(rows, objects):
        left, top, right, bottom = (float(one[corner]) for corner in _CORNERS)
        corners = np.array([(left - 1) / width, (top - 1) / height, right / width, bottom / height])
        row[0], row[1:5] = classes.index(one["name"]), np.clip(corners, 0, 1)
        row[5] = one.get("difficult", "0") == "1"
    kept = (rows[:, 3] > rows[:, 1]) & (rows[:, 4] > rows[:, 2])
    if not kept.all():
        log.warning("%s: %d boxes without area are passed over", annotation.name, int((~kept).sum()))
    return rows[kept]


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path, formats=FORMATS) as image:  # the header only; <size> is often wrong
            return image.width, image.height
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not an image that can be read", cause=str(error)[:200]) from error


def _pictures(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}


def _roles(folder: Path) -> dict[str, int]:
    """Return the part that each image's name is listed in."""
    found: dict[str, int] = {}
    for part, role in _ROLES.items():
        path = folder / f"{part}.txt"
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            found.update({line.split()[0]: role for line in text.splitlines() if line.strip()})
    return found


def _encoded(root: Path, files: list[Path]) -> Encoded:
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat()
        digest.update(f"{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return Encoded(
        name_of=lambda at: str(files[at]),
        file_of=lambda at: files[at],
        count=len(files),
        identity=digest.hexdigest(),
    )
