"""Find TensorRT's real bindings, by version: in a cache, or from the package index by pip."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
# JetPack 6 has 10.3; 10.14 and 11.4 are what JetPack 7 and desktops have.
VERSIONS = {
    "10.3.0": "tensorrt_cu12_bindings",
    "10.14.1.48.post1": "tensorrt_cu13_bindings",
    "11.4.0.106": "tensorrt_cu13_bindings",
}
REQUIRED = ("10.14.1.48.post1", "11.4.0.106")
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_TIMEOUT_S = 180


def cache() -> Path:
    """Return where wheels are kept between runs: `$EDGEKD_BINDINGS`, or a folder of the user's cache."""
    given = os.environ.get("EDGEKD_BINDINGS")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else home / "edgekd-tests" / "tensorrt-bindings"


def wheel(version: str) -> Path | None:
    """Return the wheel of a version for this Python, downloaded if need be; None where it cannot be had."""
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    pattern = f"{VERSIONS[version]}-{version}-{tag}-*.whl"
    found = next(iter(cache().glob(pattern)), None)
    if found is None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--dest", str(cache()), f"{VERSIONS[version]}=={version}"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
        except (OSError, subprocess.SubprocessError):
            return None
        found = next(iter(cache().glob(pattern)), None)
    return found


def look_at(version: str, folder: Path) -> dict[str, object] | None:
    """Unpack a version's bindings beside stub libraries, and return what they have; None where there is no wheel."""
    path, compiler = wheel(version), shutil.which("cc")
    if path is None or compiler is None:
        return None
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    for name in _LIBRARIES:
        soname = f"lib{name}.so.{version.split('.', maxsplit=1)[0]}"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", str(folder / soname)]
        subprocess.run([*command, str(HERE / "stub.c")], check=True, capture_output=True, timeout=60)
    done = subprocess.run(
        [sys.executable, str(HERE / "look.py"), str(folder)],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
        check=True,
        capture_output=True,
        timeout=120,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


if __name__ == "__main__":  # CI fills the cache with it
    missing = [version for version in REQUIRED if wheel(version) is None]
    sys.exit(f"no wheel of {', '.join(missing)}" if missing else 0)
