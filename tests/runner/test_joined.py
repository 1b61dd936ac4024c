"""The one file that a bundle ships, as text."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from edgekd import runner
from edgekd.values.job import TASKS


def names(tree: ast.Module) -> list[str]:
    """Name what a file defines at its top, in order."""
    found = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.append(node.name)
        elif isinstance(node, ast.Assign):
            found += [ast.unparse(target) for target in node.targets]
        elif isinstance(node, ast.AnnAssign):
            found.append(ast.unparse(node.target))
    return found


def test_every_task_has_a_runner():
    assert set(runner.KINDS) == set(TASKS)


@pytest.mark.parametrize("kind", runner.KINDS)
def test_it_imports_the_standard_library_and_numpy_and_nothing_of_edgekd(kind: str):
    tree = ast.parse(runner.script(kind))
    heads = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {alias.name for node in heads if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in heads if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in modules} <= {*sys.stdlib_module_names, "numpy"}
    assert not any(
        isinstance(node, ast.ImportFrom) and "edgekd" in (node.module or "") for node in ast.walk(tree)
    )


@pytest.mark.parametrize("kind", runner.KINDS)
def test_no_part_hides_a_name_of_another(kind: str):
    found = names(ast.parse(runner.script(kind)))
    assert len(found) == len(set(found))
    assert {"describe", "add_arguments", "answer", "show", "prepare", "load", "main"} <= set(found)


@pytest.mark.parametrize("kind", runner.KINDS)
def test_nothing_is_undefined_or_imported_in_vain(kind: str):
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "F",
        "--stdin-filename",
        "run.py",
        "-",
    ]
    told = subprocess.run(command, input=runner.script(kind), capture_output=True, text=True)
    assert told.returncode == 0, told.stdout
