"""What may be imported where: the device has no torch, and importing edgekd costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgekd

ROOT = Path(edgekd.__file__).parent
HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "sklearn",
    "scipy",
    "matplotlib",
    "pydantic",
    "typer",
)


def python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("module", ["edgekd.worker.__main__", "edgekd.worker.orders", "edgekd.devices.local"])
def test_the_device_side_imports_where_only_numpy_is_installed(module: str):
    absent = (*HEAVY, "psutil", "rich", "jinja2", "safetensors", "filelock", "PIL")
    python(f"import sys\nfor name in {absent!r}: sys.modules[name] = None\nimport {module}")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_worker_with_one_runtime_and_no_torch_runs_a_model(runtime: str):
    absent = tuple(name for name in (*HEAVY, "psutil", "filelock") if name != runtime)
    code = f"""
import sys
for name in {absent!r}: sys.modules[name] = None
from edgekd.values.order import ProbeOrder
from edgekd.worker.orders import Worker
print(Worker().probe(ProbeOrder(runtimes=({runtime!r},))).runtimes[0].works)
"""
    assert python(code).split()[-1] == "True"


@pytest.mark.parametrize("module", ["edgekd", "edgekd.devices", "edgekd.wire", "edgekd.values.job"])
def test_importing_edgekd_imports_nothing_heavy(module: str):
    found = python(f"import sys, {module}; print(*sys.modules)").split()
    assert not set(HEAVY).intersection(found)


def test_a_worker_that_only_starts_has_loaded_no_runtime():
    found = python("import sys, edgekd.worker.orders; print(*sys.modules)").split()
    assert not set(HEAVY).intersection(found)


def test_what_edgekd_offers_is_what_it_lists():
    assert sorted(edgekd.__all__) == sorted(set(edgekd.__all__))
    assert all(hasattr(edgekd, name) for name in edgekd.__all__)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "nncf"])
def test_a_runtime_is_imported_only_by_its_backend_and_its_quantizer(name: str):
    allowed = {*(ROOT / "runner").glob("*.py")}  # stands alone in a bundle
    places = [
        path
        for path in ROOT.rglob("*.py")
        if path not in allowed
        and path.parent.name not in {"backends", "quantizers"}
        and name in imported(path)
    ]
    assert not places


def imported(path: Path) -> set[str]:
    """Name the top-level packages that a file imports, late imports included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found
