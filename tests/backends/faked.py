"""Fixtures that put the fakes of TensorRT and of the CUDA driver in place of the real ones."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekd import backends
from edgekd.backends import trt_cuda
from tests.backends import fake_tensorrt

HERE = Path(__file__).parent
COMPILER = shutil.which("cc")


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the fake driver; its soname is the real one's."""
    # Once a session, whichever folder's tests ask first: a second copy would know nothing of the first one's memory.
    path = tmp_path_factory.getbasetemp() / "driver" / "libcuda.so.1"
    if path.exists():
        return path
    path.parent.mkdir()
    command = [str(COMPILER), "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(path)]
    subprocess.run([*command, str(HERE / "fake_cuda.c")], check=True, capture_output=True, timeout=60)
    return path


@pytest.fixture
def faked(driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Put the fakes in place, with a store of their own; gives the count of what was not freed."""
    monkeypatch.setattr(trt_cuda, "LIBRARY", str(driver))
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))
    for name in ("trt_build", "trt_session"):
        monkeypatch.delitem(sys.modules, f"edgekd.backends.{name}", raising=False)
    library = ctypes.CDLL(str(driver))
    before = library.fakeOutstanding()
    yield lambda: int(library.fakeOutstanding()) - before
    for name in ("trt_build", "trt_session"):  # they hold the fake
        sys.modules.pop(f"edgekd.backends.{name}", None)
        vars(backends).pop(name, None)
