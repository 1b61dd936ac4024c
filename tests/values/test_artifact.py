from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgekd.errors import IntegrityError
from edgekd.values.artifact import Artifact


def test_an_artifact_is_named_by_its_bytes(tmp_path: Path) -> None:
    content = b"x" * (3 << 20)  # more than a chunk
    (tmp_path / "a").write_bytes(content)
    artifact = Artifact.of(tmp_path / "a")
    assert artifact.sha256 == hashlib.sha256(content).hexdigest()
    assert artifact.size_bytes == len(content)
    assert artifact.verified() == tmp_path / "a"


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    artifact = Artifact.of(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"two")
    with pytest.raises(IntegrityError, match="not the file that was recorded") as caught:
        artifact.verified()
    assert caught.value.exit_code == 6


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="is missing"):
        Artifact(path=tmp_path / "none", sha256="").verified()
