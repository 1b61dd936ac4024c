"""Does the gate tell a slower model from an equal one, on a machine that is busy with something else?

    python tools/bench/gate.py [--parts alarms,found,fine,spread,throttle,overhead] [--load 2] [--keep FOLDER]

Prints JSON. Models are chains of equal convolutions, so that one block more in twenty is 5 % more work, and really
is work. Every gate is a whole comparison as `edgekd check` makes it, in fresh processes; the load is as many
processes that multiply matrices, which the bench starts and stops itself.

    alarms    a file against itself (--model, or a chain), under load: how often is that a FAIL?
    found     one block more in twenty (+5 %), under load: how often is it found, and in how many pairs?
    fine      one block more in a hundred (+1 %) by the CPU clock at a margin of 0.5 %, and a file against itself
    spread    a file against itself while the load comes and goes: how far does the estimate scatter, and a stored one?
    throttle  one arm alone is slowed down and says so (rehearsal): 200 comparisons
    overhead  what sampling adds to the time of an inference that does nothing

The samples are also judged by other tools' rules, and by a stored baseline. With --keep, comparisons that lie in the
folder are not made again: what took hours may be stopped, and goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from gate_traces import others, spread  # noqa: E402
from stand import chain, hogs, rivals_of, target_of  # noqa: E402

from edgekd.backends import rehearsal  # noqa: E402
from edgekd.devices import Device, connect, local  # noqa: E402
from edgekd.stages import compare as stage  # noqa: E402
from edgekd.stages.compare import PAIRS, compare  # noqa: E402
from edgekd.store import write_text  # noqa: E402
from edgekd.store.journal import read  # noqa: E402
from edgekd.timing import sampling  # noqa: E402
from edgekd.values.artifact import Artifact  # noqa: E402
from edgekd.values.codec import decode, encode  # noqa: E402
from edgekd.values.gate import Clock, Comparison, GateRules, GateVerdict, Pair  # noqa: E402
from edgekd.values.model import Model, Signature  # noqa: E402
from edgekd.worker.orders import Worker  # noqa: E402

FINE = GateRules(margin=0.005, clock=Clock.CPU)
SPREAD = GateRules(clock=Clock.CPU, looks=(10,))  # always as many pairs
COMING_AND_GOING = (0, 2, 4)  # processes of load, one comparison after the other
THROTTLED = 200
_SLOW = {"slowdown": "4"}  # a few hundred inferences a launch
_SMALL = 4  # pixels a side, where only the rehearsal's own clock counts


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says."""

    gates: int
    load: int
    runtimes: tuple[str, ...]
    models: tuple[Path, ...]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--gates", type=int, default=40, help="comparisons a part; 300 for `alarms`")
    parser.add_argument("--load", type=int, default=2, help="processes that keep the machine busy")
    parser.add_argument("--runtimes", default="onnxruntime,openvino", help="by turns")
    parser.add_argument("--model", type=Path, action="append", help="an .onnx for `alarms`, once each")
    parser.add_argument("--keep", type=Path, help="folder for the comparisons, and to go on from")
    given = parser.parse_args()
    asked = Asked(
        gates=given.gates,
        load=given.load,
        runtimes=tuple(given.runtimes.split(",")),
        models=tuple(given.model or ()),
    )
    found: dict[str, Any] = {"load": asked.load}
    with nullcontext(given.keep) if given.keep else tempfile.TemporaryDirectory() as folder:
        for part in given.parts.split(","):
            found[part] = PARTS[part](Path(folder) / f"{part}-{asked.load}", asked)
    print(json.dumps(found, indent=1))


def alarms(folder: Path, asked: Asked) -> dict[str, Any]:
    models = [Model(file=Artifact.of(path.absolute())) for path in asked.models]
    models = models or [chain(folder / "model.onnx", blocks=20)]
    each = replace(asked, gates=asked.gates // len(models))
    with hogs(asked.load):
        return {
            model.file.path.name: _judged(folder / str(at), model, model, each, GateRules())
            for at, model in enumerate(models)
        }


def slower(folder: Path, asked: Asked) -> dict[str, Any]:
    base, candidate = chain(folder / "base.onnx", 20), chain(folder / "slower.onnx", 21)
    with hogs(asked.load):
        return _judged(folder, base, candidate, asked, GateRules())


def fine(folder: Path, asked: Asked) -> dict[str, Any]:
    base, candidate = chain(folder / "base.onnx", 100), chain(folder / "slower.onnx", 101)
    with hogs(asked.load):
        return {
            "+1 %": _judged(folder / "slower", base, candidate, asked, FINE),
            "itself": _judged(folder / "itself", base, base, asked, FINE),
        }


def scatter(folder: Path, asked: Asked) -> dict[str, Any]:
    """Compare a model of some 10 ms with itself; the load is another one for each comparison."""
    model = chain(folder / "model.onnx", blocks=100, side=60)
    made: list[Comparison] = []
    traces: list[tuple[Pair, ...]] = []
    for number in range(asked.gates):
        with hogs(COMING_AND_GOING[number % len(COMING_AND_GOING)]):
            time.sleep(1)  # until they are at it
            one = replace(asked, gates=1, runtimes=(asked.runtimes[0],))
            comparison, trace = _comparisons(folder / str(number), model, model, one, SPREAD)[0]
        made.append(comparison)
        traces.append(trace)
        _tell(number + 1, asked.gates, made)
    return {**_summary(made, traces), "spread": spread(traces, Clock.CPU, asked.runtimes[:1])}


def _judged(folder: Path, base: Model, candidate: Model, asked: Asked, rules: GateRules) -> dict[str, Any]:
    pairs = _comparisons(folder, base, candidate, asked, rules)
    made, traces = [one for one, _ in pairs], [trace for _, trace in pairs]
    by_runtime = {
        runtime: _summary(made[at :: len(asked.runtimes)], traces[at :: len(asked.runtimes)])
        for at, runtime in enumerate(asked.runtimes)
        if made[at :: len(asked.runtimes)]
    }
    return {
        **_summary(made, traces),
        "by runtime": by_runtime,
        "by other rules": others(traces, apart=len(asked.runtimes)),
        "spread": spread(traces, rules.clock, asked.runtimes),
    }


def _comparisons(
    folder: Path, base: Model, candidate: Model, asked: Asked, rules: GateRules
) -> list[tuple[Comparison, tuple[Pair, ...]]]:
    """Make so many comparisons, each in fresh processes, runtimes by turns; those that are kept are read."""
    made: list[tuple[Comparison, tuple[Pair, ...]]] = []
    with connect(target_of(*asked.runtimes)) as device:
        for number in range(asked.gates):
            own, verdict = folder / str(number), folder / str(number) / "comparison.json"
            rivals = rivals_of(base, candidate, asked.runtimes[number % len(asked.runtimes)])
            if verdict.is_file():
                comparison = decode(Comparison, json.loads(verdict.read_text()), "comparison")
            else:
                seeded = replace(rules, seed=1000 * number)
                comparison = compare(own, device, rivals, seeded, alpha=rules.alpha)
                # The reference has too few pairs for bounds, and JSON has no infinity.
                comparison = replace(comparison, reference=None)
                write_text(verdict, encode(comparison))
            made.append((comparison, read(own / PAIRS, Pair)))
            _tell(number + 1, asked.gates, [one for one, _ in made])
    return made


def _summary(made: Sequence[Comparison], traces: Sequence[Sequence[Pair]]) -> dict[str, Any]:
    verdicts = [one.verdict.value for one in made]
    failed = [one.pairs for one in made if one.verdict is GateVerdict.FAIL]
    return {
        "comparisons": len(made),
        "verdicts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        "median pairs": statistics.median(one.pairs for one in made),
        "median pairs of a FAIL": statistics.median(failed) if failed else None,
        "seconds, median and p95": [
            round(float(np.percentile([one.seconds for one in made], rank)), 1) for rank in (50, 95)
        ],
        "of them in timed inferences, median and p95": [
            round(float(np.percentile([_timed_s(trace) for trace in traces], rank)), 1) for rank in (50, 95)
        ],
        "median estimate": round(statistics.median(one.ratio.estimate for one in made if one.ratio), 4),
        "scatter of a pair, %": round(
            100 * statistics.median(statistics.stdev(one.log_ratios) for one in made), 2
        ),
    }


def _timed_s(pairs: Sequence[Pair]) -> float:
    """Return the time in inferences that were recorded: no start of a process, no warming up."""
    return sum(sum(arm.samples_ms) for pair in pairs for arm in (pair.base, pair.candidate)) / 1e3


def throttle(folder: Path, _: Asked) -> dict[str, Any]:
    """Slow one arm alone, on the rehearsal backend, in this process: nothing of it may be called a regression.

    In some comparisons every launch of it throttles, in the others every tenth or so. The control says nothing of its
    throttling, and shows that it would be called a regression.
    """
    base = chain(folder / "base.onnx", 4, _SLOW, _SMALL)
    local.Child = WorkerHere  # type: ignore[misc, assignment]
    stage.reference = lambda: base  # the reference evaluator takes seconds for the shipped one
    with connect(target_of("rehearsal", profile="rehearsal")) as device:
        found = {
            f"in {share:.0%} of its launches": _throttled(folder, device, base, share) for share in (1.0, 0.1)
        }
        rehearsal.RehearsalSession.throttle_count = lambda _: 0  # type: ignore[method-assign]
        return {**found, "control, all and unsaid": _throttled(folder / "control", device, base, 1.0)}


def _throttled(folder: Path, device: Device, base: Path, share: float) -> dict[str, Any]:
    """Compare THROTTLED / 2 files that throttle with one that does not."""
    folder.mkdir(exist_ok=True)
    verdicts: Counter[str] = Counter()
    kept = dropped = 0
    for number in range(THROTTLED // 2):
        hot = chain(
            folder / f"hot{number}-{share}.onnx",
            4,
            {**_SLOW, "throttle": f"{1 + number % 2}:1.4:{share}"},
            _SMALL,
        )
        rules = GateRules(seed=number)
        done = compare(
            folder / f"{number}-{share}", device, rivals_of(base, hot, "rehearsal"), rules, alpha=rules.alpha
        )
        verdicts[done.verdict.value] += 1
        kept, dropped = kept + done.pairs, dropped + len(done.dropped)
    return {"verdicts": dict(sorted(verdicts.items())), "pairs": kept, "pairs dropped": dropped}


def overhead(_: Path, __: Asked) -> dict[str, Any]:
    """Sample an inference that does nothing: what is recorded is the harness."""
    session = Nothing()
    taken = [sampling.sample(session, [{}] * 8, 2000).wall_ns for _ in range(5)]
    empty = statistics.median(ns for run in taken for ns in run)
    return {"a null inference is recorded as, us": empty / 1e3}


class Nothing:
    """A session that does nothing."""

    real_time = True
    signature = Signature(inputs=(), outputs=())

    def run(self, _: Any) -> dict[str, Any]:
        return {}

    def throttle_count(self) -> int:
        return 0

    def clock_ns(self) -> int:
        return time.perf_counter_ns()

    def cpu_clock_ns(self) -> int:
        return time.thread_time_ns()


class WorkerHere:
    """A worker in this process: the same orders, no wire and no start-up."""

    def __init__(self, *_: object, **__: object) -> None:
        self._handlers = Worker().handlers()

    def ask(self, name: str, order: Any, *_: object, **__: object) -> Any:
        return self._handlers[name].carry_out(order)

    def close(self) -> None:
        """Nothing to end."""

    def __enter__(self) -> WorkerHere:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""


def _tell(number: int, gates: int, made: Sequence[Comparison]) -> None:
    fails = sum(one.verdict is GateVerdict.FAIL for one in made)
    last = made[-1]
    print(
        f"{number}/{gates}: {last.verdict.value} {last.pairs} pairs {last.seconds:.0f} s; {fails} FAIL so far",
        file=sys.stderr,
    )


PARTS: dict[str, Callable[[Path, Asked], dict[str, Any]]] = {
    "alarms": alarms,
    "found": slower,
    "fine": fine,
    "spread": scatter,
    "throttle": throttle,
    "overhead": overhead,
}

if __name__ == "__main__":
    main()
