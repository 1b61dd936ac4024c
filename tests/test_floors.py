"""The style bars: how long files and functions are, and words that name nothing."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "edgekd").rglob("*.py"))
VAGUE = re.compile(r"(^|_)(utils?|common|helpers?|misc|manager|base|stuff)($|_)", re.IGNORECASE)
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError")


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions() -> dict[str, int]:
    """Count the lines of every function from its `def` on, decorators apart."""
    found = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                name = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                found[name] = (node.end_lineno or node.lineno) - node.lineno + 1
    return found


def test_files_are_of_a_size_to_read_at_once() -> None:
    sizes = sorted(lines_of(path) for path in FILES if path.name not in ("__init__.py", "__main__.py"))
    assert 100 <= statistics.median(sizes) <= 250
    assert sizes[int(0.9 * len(sizes))] <= 430


def test_no_function_is_over_60_lines() -> None:
    assert {name: lines for name, lines in functions().items() if lines > 60} == {}


def test_half_of_the_functions_have_at_most_10_lines() -> None:
    assert statistics.median(functions().values()) <= 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_say_what_they_name_and_nothing_is_left_unfinished(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    names = [path.stem] + [
        node.name for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    ]
    assert [name for name in names if VAGUE.search(name)] == []
    assert UNFINISHED.findall(text) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_is_for_and_swallows_no_error(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            silent = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
            assert not silent, f"line {node.lineno}"
