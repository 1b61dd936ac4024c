"""The command line of a bundle."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.runner.answers_classification import add_arguments, answer, describe, show
from edgekd.runner.engines import LOADERS
from edgekd.runner.files import Refusal, printable
from edgekd.runner.student import Student


def main(arguments: list[str] | None = None) -> int:
    """Answer what the command line asks, and return the exit code."""
    options = _options(arguments)
    try:
        found = _run(options)
    except Refusal as refusal:
        print(f"run.py: {printable(str(refusal))}", file=sys.stderr)
        return refusal.exit_code
    if options.json:
        print(json.dumps(found))
        return 0
    show(found)
    for name, word in (("benchmark_ms", "here"), ("measured_ms", "when bundled")):
        if name in found:
            print(f"{word}: {_ranks(found[name])}")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py", description=describe())
    add_arguments(parser)
    parser.add_argument("--runtime", choices=sorted(LOADERS), help="instead of the accepted deployment's")
    parser.add_argument("--benchmark", type=int, default=0, metavar="N", help="also time N inferences here")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--strict", action="store_true", help="refuse a machine other than the measured one")
    parser.add_argument(
        "--bundle", type=Path, default=Path(__file__).resolve().parent, help=argparse.SUPPRESS
    )
    options = parser.parse_args(arguments)
    if options.benchmark < 0:
        parser.error("--benchmark must be at least 0")
    return options


def _run(options: argparse.Namespace) -> dict[str, Any]:
    student = Student(options.bundle, options.runtime)
    for note in student.notes:
        print(f"warning: {printable(note)}", file=sys.stderr)
    if options.strict and student.notes:
        raise Refusal(f"--strict: {student.notes[-1]}", 4)
    said, inputs = answer(student, options)
    found = {"schema_version": 1, **said, "deployment": student.name, "notes": student.notes}
    if options.benchmark:
        found["benchmark_ms"] = student.benchmark(inputs, options.benchmark)
        found["measured_ms"] = {rank: student.deployment["latency"][rank] for rank in found["benchmark_ms"]}
    return found


def _ranks(percentiles: Mapping[str, float]) -> str:
    return ", ".join(f"{rank} {value:.3f} ms" for rank, value in percentiles.items())
