"""Put the runner's parts together into the one file that a bundle ships."""

import ast
from pathlib import Path

_OPENING = '''"""Runs a bundle: checks every file, prepares an input exactly as in the evaluation, and answers.

This one file is put together from edgekd's runner, with what a bundle for {kind} needs. It needs the
standard library, numpy and one of the bundle's runtimes, Pillow for image files, and nothing of edgekd.

    python run.py --help

Runtimes: onnxruntime, openvino, and tensorrt (-graph, -dla), whose engine is built here from the bundle's .onnx.

Exit codes: 0 done, 2 usage, 4 no runtime or (with --strict) another machine, 6 a file is not what it must be.
"""

# No `from __future__ import annotations` here: even that is a file somebody could lay beside this one.
import os
import sys

if (
    __name__ == "__main__"
):  # a stray numpy.py or json.py beside this file must not be imported for the real one
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != _here]

'''
_CLOSING = """
if __name__ == "__main__":
    sys.exit(main())
"""
_PACKAGE = "edgekd.runner"
_MACHINERY = ("files", "trt_engine", "engines", "student")
ENDS = {  # by the kind of task: how its input is made, and what is said of its output
    "classification": ("from_image", "answers_classification"),
    "recognition": ("from_image", "answers_recognition"),
    "regression": ("from_features", "answers_regression"),
    "ranking": ("from_features", "answers_ranking"),
    "generation": ("from_text", "answers_generation"),
    "keywords": ("from_spectrogram", "answers_keywords"),
    "detection": ("from_image", "boxes", "answers_detection"),
    "segmentation": ("from_image", "answers_segmentation"),
}


def script(kind: str) -> str:
    """Return the text of `run.py` for a kind of task, one of `ENDS`."""
    imports: list[ast.Import | ast.ImportFrom] = []
    bodies = []
    for part in (*_MACHINERY, *ENDS[kind], "program"):
        found, body = _taken_apart((Path(__file__).parent / f"{part}.py").read_text(encoding="utf-8"))
        imports += found
        bodies.append(body)
    head = _OPENING.replace("{kind}", kind) + "\n".join(_sorted(imports))
    return head + "\n\n\n" + "\n\n".join(bodies) + _CLOSING


def _taken_apart(source: str) -> tuple[list[ast.Import | ast.ImportFrom], str]:
    """Return a part's imports, those of other parts left out, and what follows them."""
    first, *rest = ast.parse(source).body  # the docstring, which speaks of the part
    heads = [one for one in rest if isinstance(one, (ast.Import, ast.ImportFrom))]
    foreign = [one for one in heads if not (getattr(one, "module", "") or "").startswith(_PACKAGE)]
    end = (heads[-1] if heads else first).end_lineno or 0
    return foreign, "\n".join(source.splitlines()[end:]).strip() + "\n"


def _sorted(imports: list[ast.Import | ast.ImportFrom]) -> list[str]:
    """Write each module's import once, the standard library's before numpy's."""
    whole = {
        f"import {ast.unparse(name)}" for one in imports if isinstance(one, ast.Import) for name in one.names
    }
    parts: dict[str, set[str]] = {}
    for one in imports:
        if isinstance(one, ast.ImportFrom):
            parts.setdefault(one.module or "", set()).update(ast.unparse(name) for name in one.names)
    lines = [
        *sorted(whole),
        *(f"from {name} import {', '.join(sorted(parts[name]))}" for name in sorted(parts)),
    ]
    own = [line for line in lines if "numpy" not in line and line not in {"import os", "import sys"}]
    return [*own, "", *(line for line in lines if "numpy" in line)]
