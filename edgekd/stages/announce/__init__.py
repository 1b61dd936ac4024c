"""Tell CI, and people who read CI, what the gate found: one file an output."""

# Without `from __future__ import annotations`: it would be the name of what is here.

import json
from pathlib import Path

from edgekd.stages.announce.comment import MARKER, markdown
from edgekd.stages.announce.github import annotations
from edgekd.stages.announce.junit_xml import junit
from edgekd.stages.announce.tracking import bencher_json, benchmark_json, gate_json
from edgekd.store import write_text
from edgekd.values.gate import Gate

__all__ = [
    "MARKER",
    "annotations",
    "announce",
    "bencher_json",
    "benchmark_json",
    "gate_json",
    "junit",
    "markdown",
]


def announce(folder: Path, gate: Gate, *, command: str, summary: Path | None = None) -> dict[str, Path]:
    """Write every output into `folder` and return the files by name.

    The comment is also appended to `summary`: the file that GITHUB_STEP_SUMMARY names, where there is one.

    Raises:
        ResourcesExhausted: the disk is full.

    """
    from edgekd.stages.gate_page import page

    comment = markdown(gate, command=command)
    texts = {
        "gate.json": json.dumps(gate_json(gate), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "junit.xml": junit(gate),
        "comment.md": comment,
        "benchmark.json": benchmark_json(gate),
        "bencher.json": bencher_json(gate),
        "gate.html": page(gate, command=command),
    }
    written = {name: write_text(folder / name, text) for name, text in texts.items()}
    if summary is not None:
        with summary.open("a", encoding="utf-8") as file:
            file.write(f"{comment}\n")
    return written
