"""The gates on what distillation gains, over seeds and paired by them.

    .venv/bin/python tools/bench/distillation.py [--parts D3,D4,...] [--seeds 5] [--mnist FOLDER]

Prints JSON, and exits with 1 where a gate failed. Each part is a function of its own file: see there for data, teacher,
student and score. A gate passes with a mean gain of at least half of the reference's
(distillation.md, 8.3 and section 4) and t > 3.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402 - after the number of threads is set
from gates_generation import d6  # noqa: E402
from gates_ranking import d5  # noqa: E402
from gates_recognition import d4  # noqa: E402
from gates_regression import d3  # noqa: E402
from gates_schemes import d1, d2x, schemes  # noqa: E402

LEAST_SEEDS = 5
# A part takes the number of seeds and the arguments, and returns {"gates": {name: {"passed": ...}}, ...}.
PARTS: dict[str, Callable[[int, argparse.Namespace], dict[str, Any]]] = {
    "D1": lambda seeds, _: d1(seeds),
    "D2x": lambda seeds, _: d2x(seeds),
    "D3": lambda seeds, _: d3(seeds),
    "D4": lambda seeds, arguments: d4(seeds, arguments.mnist),
    "D5": lambda seeds, _: d5(seeds),
    "D6": lambda seeds, _: d6(seeds),
    "schemes": lambda seeds, _: schemes(seeds),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="what distillation gains")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seeds", type=int, default=LEAST_SEEDS)
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's test files, for D4")
    arguments = parser.parse_args()
    names = arguments.parts.split(",")
    if unknown := set(names) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if "D4" in names and arguments.mnist is None:
        parser.error("D4 needs --mnist")
    found = {name: part(name, arguments) for name in names}
    report = {
        "schema_version": 1,
        "bench": "distillation",
        "seeds": arguments.seeds,
        "torch": torch.__version__,
        "parts": found,
        "passed": all(gate["passed"] for one in found.values() for gate in one["gates"].values()),
    }
    print(json.dumps(report, indent=1))
    sys.exit(0 if report["passed"] else 1)


def part(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    found = PARTS[name](arguments.seeds, arguments)
    print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
