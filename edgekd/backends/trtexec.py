"""Time a model with NVIDIA's `trtexec`, where TensorRT has no Python module: another path, and not a backend.

`trtexec` runs a whole series at once, on inputs of its own making. A session answers one inference at a time with
its outputs, so that labels can be checked and engines can take turns; this cannot, and does not pretend to. What it
gives is a series of single samples (from `--exportTimes`, never from what it prints), by CUDA's events.

Its defaults changed: 10 includes the copies, 11 leaves them out, spins and launches a CUDA graph. So every choice
that moves a number is made by a flag, the flags are part of the result, and each must be in the program's own
`--help`.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.backends.tensorrt import check
from edgekd.errors import BackendMissing, BuildError, DeviceError
from edgekd.values.artifact import sha256_of
from edgekd.values.model import Engine

PLACES = (
    Path("/usr/src/tensorrt/bin"),
    Path("/usr/local/tensorrt/bin"),
)  # beside PATH: where JetPack puts it
# Alike in both: copies are part of an inference and do not overlap with another one, no CUDA graph, spinning.
_TIMING = {
    10: ("--exposeDMA", "--useSpinWait"),
    11: ("--exposeDMA", "--includeDataTransfers", "--noCudaGraph"),
}
_BUILDING = {10: ("--skipInference", "--stronglyTyped", "--noTF32"), 11: ("--skipInference", "--noTF32")}
_BANNER = re.compile(r"TensorRT\.trtexec \[TensorRT v(\d{5,7})\]")
_HELP_TIMEOUT_S = 60.0
_MOST_BYTES = 64 << 20  # of exported times; a sample takes about 300
_TAIL = 1000
_INPUT = re.compile(r"[A-Za-z0-9_./-]+")  # what needs no quoting in trtexec's own little language


@dataclass(frozen=True, kw_only=True)
class Program:
    """A `trtexec` that was found."""

    path: Path
    version: tuple[int, int, int]
    known: frozenset[str]  # flags that its --help lists

    def flags(self, table: Mapping[int, Sequence[str]]) -> tuple[str, ...]:
        """Return the flags for this version.

        Raises:
            BackendMissing: they are not known for it, or the program does not list one.

        """
        words = ".".join(map(str, self.version))
        flags = tuple(table.get(self.version[0], ()))
        missing = [flag for flag in flags if flag not in self.known]
        if not flags or missing:
            cause = (
                f"its --help does not list {', '.join(missing)}" if missing else "only 10 and 11 are known"
            )
            mend = "install TensorRT's Python module: `sudo apt install python3-libnvinfer`"
            raise BackendMissing(f"trtexec {words} cannot be pinned", cause=cause, mend=mend)
        return flags


@dataclass(frozen=True, kw_only=True)
class Times:
    """Single inferences in run order, in ms, by CUDA's events: from the first byte copied in to the last copied out."""

    samples_ms: tuple[float, ...]
    copy_in_ms: tuple[float, ...]
    compute_ms: tuple[float, ...]
    copy_out_ms: tuple[float, ...]
    launch_sizes: tuple[int, ...]  # samples of each process
    build_s: float
    version: str
    build_flags: tuple[str, ...]
    time_flags: tuple[str, ...]


def find(path: str | None = None) -> Program:
    """Find `trtexec` on PATH or where JetPack puts it, and ask it what it is.

    Raises:
        BackendMissing: there is none, or it does not say which.

    """
    places = os.pathsep.join((path if path is not None else os.environ.get("PATH", ""), *map(str, PLACES)))
    found = shutil.which("trtexec", path=places)
    if found is None:
        raise BackendMissing(
            "there is no trtexec here",
            cause=f"it is neither on PATH nor in {PLACES[0]}",
            mend="on a Jetson: `sudo apt install libnvinfer-bin`",
        )
    text = _run([found, "--help"], _HELP_TIMEOUT_S)
    banner = _BANNER.search(text)
    if banner is None:
        mend = "`trtexec --help` must begin with its banner; reinstall it"
        raise BackendMissing(f"{found} does not say its version", cause=text[-_TAIL:], mend=mend)
    return Program(
        path=Path(found),
        version=_version(int(banner.group(1))),
        known=frozenset(re.findall(r"(?<![\w-])--[A-Za-z]\w*", text)),
    )


def time_with_trtexec(
    engine: Engine,
    *,
    launches: int = 3,
    samples: int = 400,
    warmup_ms: int = 200,
    memory_mib: int | None = None,
    timeout_s: float = 1800.0,
    path: str | None = None,
) -> Times:
    """Build an engine in a folder of its own and time it in fresh processes, one inference after the other.

    Args:
        engine: an .onnx whose graph says what is computed in what; `shapes` for its dynamic inputs.
        launches: fresh processes.
        samples: of each, at the least.
        warmup_ms: of each, uncounted.
        memory_mib: that a layer's scratch may take while building.
        timeout_s: of the build and of each launch.
        path: where to look, in place of PATH.

    Raises:
        BackendMissing: there is no trtexec, or none that is known.
        BuildError: it refuses the model, dies of it or takes too long.

    """
    check(engine)
    program = find(path)
    building = (*program.flags(_BUILDING), *_shapes(engine), *_memory(memory_mib))
    timing = (
        *program.flags(_TIMING),
        f"--warmUp={warmup_ms}",
        f"--iterations={samples}",
        "--duration=0",
        *_shapes(engine),
    )
    with tempfile.TemporaryDirectory(
        prefix="edgekd-trtexec-"
    ) as scratch:  # mode 0700: nobody else puts an engine there
        plan, start = Path(scratch) / "engine.plan", time.monotonic()
        model = f"--onnx={engine.model.file.path.resolve()}"
        _build([str(program.path), model, f"--saveEngine={plan}", *building], plan, engine, timeout_s)
        build_s, digest = time.monotonic() - start, sha256_of(plan)
        series = [_launch(program, plan, digest, timing, timeout_s) for _ in range(launches)]
    return _times(series, build_s, program, building, timing)


def read_times(text: str) -> list[dict[str, float]]:
    """Read what `--exportTimes` wrote: an object an inference, all times in ms.

    Raises:
        DeviceError: it is no such JSON, or a time is not finite or negative.

    """
    wanted = ("h2dMs", "computeMs", "d2hMs", "latencyMs")
    try:
        entries: list[dict[str, Any]] = json.loads(text)
        found = [{name: float(entry[name]) for name in wanted} for entry in entries]
        worst = min((value for one in found for value in one.values()), default=-1.0)
        if worst < 0 or not all(math.isfinite(value) for one in found for value in one.values()):
            raise ValueError("a time is missing, negative or not finite")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        cause = f"{type(error).__name__}: {error}"[:500]
        raise DeviceError(
            "trtexec's times cannot be read", cause=cause, mend="its version may be too new"
        ) from error
    return found


def _build(command: Sequence[str], plan: Path, engine: Engine, timeout_s: float) -> None:
    name = engine.model.file.path.name
    try:
        text = _run(command, timeout_s)
    except DeviceError as error:
        raise BuildError(f"trtexec cannot compile {name}", cause=error.cause, mend=error.mend) from error
    if not plan.is_file() or not plan.stat().st_size:
        raise BuildError(f"trtexec made no engine of {name}", cause=_errors(text))


def _launch(
    program: Program, plan: Path, digest: str, flags: Sequence[str], timeout_s: float
) -> list[dict[str, float]]:
    if sha256_of(plan) != digest:
        raise DeviceError("the engine changed between two launches", cause=str(plan))
    times = plan.with_name("times.json")
    times.unlink(missing_ok=True)
    text = _run([str(program.path), f"--loadEngine={plan}", f"--exportTimes={times}", *flags], timeout_s)
    if not times.is_file() or times.stat().st_size > _MOST_BYTES:
        raise DeviceError("trtexec exported no times", cause=_errors(text))
    return read_times(times.read_text(encoding="utf-8", errors="replace"))


def _times(
    series: Sequence[Sequence[Mapping[str, float]]],
    build_s: float,
    program: Program,
    building: tuple[str, ...],
    timing: tuple[str, ...],
) -> Times:
    columns = {
        name: tuple(sample[name] for launch in series for sample in launch)
        for name in ("latencyMs", "h2dMs", "computeMs", "d2hMs")
    }
    return Times(
        samples_ms=columns["latencyMs"],
        copy_in_ms=columns["h2dMs"],
        compute_ms=columns["computeMs"],
        copy_out_ms=columns["d2hMs"],
        launch_sizes=tuple(map(len, series)),
        build_s=build_s,
        version=".".join(map(str, program.version)),
        build_flags=building,
        time_flags=timing,
    )


def _shapes(engine: Engine) -> tuple[str, ...]:
    """Give dynamic inputs the one shape that is timed; trtexec makes a profile of it."""
    for name in engine.shapes or {}:
        if not _INPUT.fullmatch(name):
            raise BuildError(f"trtexec cannot be told of an input called {name!r}", mend="rename the input")
    given = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in (engine.shapes or {}).items())
    return (f"--shapes={given}",) if given else ()


def _memory(memory_mib: int | None) -> tuple[str, ...]:
    return (f"--memPoolSize=workspace:{memory_mib}",) if memory_mib else ()


def _version(number: int) -> tuple[int, int, int]:
    """Take NV_TENSORRT_VERSION apart: 100300 is 10.3.0."""
    return number // 10_000, number // 100 % 100, number % 100


def _run(command: Sequence[str], timeout_s: float) -> str:
    """Run trtexec and return what it printed.

    Raises:
        DeviceError: it cannot be run, fails or takes too long.

    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError("trtexec takes too long", cause=f"ended after {timeout_s:.0f} s") from error
    except OSError as error:
        raise DeviceError("trtexec cannot be run", cause=str(error)) from error
    text = done.stdout.decode(errors="replace")
    if done.returncode:
        raise DeviceError(f"trtexec failed with exit code {done.returncode}", cause=_errors(text))
    return text


def _errors(text: str) -> str:
    """Return the lines that trtexec marks as errors, or its last ones."""
    marked = [line for line in text.splitlines() if "[E]" in line]
    return ("\n".join(marked) or text)[-_TAIL:].strip()
