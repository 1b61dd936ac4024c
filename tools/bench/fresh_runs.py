"""Does what `edgekd run` accepts keep its budget when it is measured again?

    python tools/bench/fresh_runs.py [--runs 10] [--job digits] [--out runs/fresh]

Makes fresh runs of a job, each with a seed of its own, and times every accepted file again, in fresh processes and in
turns with the teacher it came from. It holds where the upper bound of its p99 keeps to the limit that its manifest
states. Prints one JSON object; exit code 1 where a run ends without a bundle, or an accepted file does not hold.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from edgekd.devices import Device, connect  # noqa: E402
from edgekd.stages.bundle import read_manifest  # noqa: E402
from edgekd.stages.configure import configure, load_target  # noqa: E402
from edgekd.values.artifact import Artifact  # noqa: E402
from edgekd.values.latency import Protocol  # noqa: E402
from edgekd.values.model import Engine, Model, Precision  # noqa: E402

AGAIN = Protocol(launches=3, blocks=4, samples=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--job", default="digits")
    parser.add_argument("--out", type=Path, default=Path("runs/fresh"))
    arguments = parser.parse_args()
    configured = configure(arguments.job)
    with connect(load_target(configured.job, configured.beside)) as device:
        found = [
            _run(device, arguments.job, arguments.out / str(seed), seed) for seed in range(arguments.runs)
        ]
    broken = sum(not one["holds"] for one in found)
    print(json.dumps({"runs": found, "broken": broken}, indent=1))
    raise SystemExit(1 if broken else 0)


def _run(device: Device, job: str, out: Path, seed: int) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    start = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "edgekd",
        "run",
        job,
        f"search.seed={seed}",
        "--out",
        str(out),
        "--quiet",
    ]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    seconds = round(time.monotonic() - start)
    again = (
        _again(device, out, seed) if done.returncode == 0 else {"holds": False, "error": done.stderr[-500:]}
    )
    found = {"seed": seed, "exit": done.returncode, "seconds": seconds, **again}
    print(json.dumps(found), file=sys.stderr)
    return found


def _again(device: Device, out: Path, seed: int) -> dict[str, Any]:
    manifest = read_manifest(out / "bundle")
    accepted = manifest.accepted
    file, *rest = (Artifact.of(out / "bundle" / name) for name in accepted.files)
    student = Engine(
        model=Model(file=file, weights=rest[0] if rest else None, precision=accepted.precision),
        runtime=accepted.runtime,
        precision=accepted.precision,
        threads=accepted.threads,
    )
    parent = Artifact.of(next((out / "store" / "teacher_model").glob("*/model.onnx")))
    teacher = Engine(model=Model(file=parent), runtime=accepted.runtime, precision=Precision.FP32)
    beside, now = device.time([teacher, student], replace(AGAIN, seed=100 + seed))
    limit_ms, bound_ms = manifest.limits_ms["p99"], now.upper_bound(99)
    return {
        "accepted": student.name,
        "accuracy": {"teacher": manifest.accuracy.teacher, "student": manifest.accuracy.student},
        "limit_ms": round(limit_ms, 4),
        "p99_upper_ms": {"then": accepted.latency.p99_upper, "now": round(bound_ms, 4)},
        "p99_ms": round(now.percentile(99), 4),
        "teacher_p99_ms": round(beside.percentile(99), 4),
        "trust": now.trust.verdict.value,
        "holds": bound_ms <= limit_ms,
    }


if __name__ == "__main__":
    main()
