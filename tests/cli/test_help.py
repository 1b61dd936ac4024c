from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERBS = (
    "run", "plan", "distill", "report", "verify",
    "check", "requalify", "devices",
    "profile", "export", "quantize", "compile",
    "init", "config", "doctor", "cache",
)  # fmt: skip
HEAVY = (
    "torch",
    "onnx",
    "openvino",
    "onnxruntime",
    "nncf",
    "sklearn",
    "matplotlib",
    "scipy",
    "numpy",
    "PIL",
    "jinja2",
)

PROGRAM = f"""
import sys
from edgekd.__main__ import main
for verb in ([], *([verb] for verb in {VERBS!r})):
    sys.argv = ["edgekd", *verb, "--help"]
    try:
        main()
    except SystemExit as end:
        assert end.code == 0, verb
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
"""


def edgekd(*arguments: str, columns: int = 100) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(columns), "NO_COLOR": "1"}
    ran = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False, cwd=ROOT
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_no_help_imports_anything_heavy() -> None:
    edgekd("-c", PROGRAM)


@pytest.fixture(scope="module")
def main_help() -> str:
    return edgekd("-m", "edgekd", "--help")


def test_the_help_lists_every_verb_and_no_other(main_help: str) -> None:
    listed = re.findall(r"^│ ([a-z-]+) +[A-Z]", main_help, re.MULTILINE)
    assert sorted(listed) == sorted(VERBS)


@pytest.mark.parametrize("code", ["0", "1", "2", "3", "4", "5", "6", "7", "70", "130"])
def test_the_help_explains_every_exit_code(main_help: str, code: str) -> None:
    assert re.search(rf"^ +{code}   \w", main_help, re.MULTILINE)


def test_the_help_fits_a_terminal_of_80_columns() -> None:
    assert max(len(line) for line in edgekd("-m", "edgekd", "--help", columns=80).splitlines()) <= 80


def test_the_version_is_one_line() -> None:
    program = "import importlib.metadata as m; m.version = lambda _: '1.2'; from edgekd.__main__ import main; main()"
    assert edgekd("-c", program, "--version") == "1.2\n"
