"""How well are edgekd's own students predicted on this machine's CPU, from at most 20 measurements?

    python tools/bench/own_students.py --keep FOLDER [--students 300] [--samples 20] [--combinations onnxruntime/int8,openvino/int8]

Prints JSON. Students are drawn from the space of `--job`, exported untrained, quantised, and timed as `edgekd plan`
times them, one order a student. Each is in FOLDER once it is measured: stopped at any moment, the same command goes
on where it was. Of those measured, `--samples` teach the predictor: three from small to large, each further one
chosen by what is not yet known. All others judge: share within 5 and 10 %, what the stated 90 % interval holds, and
rank correlation. `device_seconds` is what the teaching measurements took. Peers learn from the same students: a line in
the multiply-accumulates, and boosted trees, these from 200 students as well.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from edgekd.errors import EdgekdError, UsageError  # noqa: E402
from edgekd.pipeline.trials import time_untrained  # noqa: E402
from edgekd.pipeline.workbench import Workbench, workbench  # noqa: E402
from edgekd.stages.configure import configure  # noqa: E402
from edgekd.stages.predict import Predictor, groups_of, predict, shared_of  # noqa: E402
from edgekd.store.journal import append, read  # noqa: E402
from edgekd.students import costs, draw  # noqa: E402
from edgekd.surrogates.latency import choose  # noqa: E402
from edgekd.values.model import Precision  # noqa: E402
from edgekd.values.student import Space, StudentSpec  # noqa: E402
from edgekd.values.trial import History, Trial, Verdict  # noqa: E402

Floats = NDArray[np.float64]
Combination = tuple[str, Precision]

FIRST = 3  # students, from small to large, before any is chosen
MANY = 200  # from which a peer learns as well


@dataclass(frozen=True, kw_only=True)
class Took:
    """Device time of one student's measurements."""

    spec: StudentSpec
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, required=True, help="folder of the measurements, to go on from")
    parser.add_argument("--job", default="digits")
    parser.add_argument("--students", type=int, default=300)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--combinations", default="onnxruntime/int8,openvino/int8")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        print(json.dumps(_measured_and_judged(given), indent=1))
    except EdgekdError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _measured_and_judged(given: argparse.Namespace) -> dict[str, Any]:
    if not FIRST < given.samples < given.students:
        raise UsageError(f"--samples must be above {FIRST} and below --students")
    wanted = tuple(_combination(text) for text in given.combinations.split(","))
    configured = configure(given.job)
    job = replace(configured.job, search=replace(configured.job.search, seed=given.seed))
    with workbench(job, beside=configured.beside, name="own", out=given.keep, train=False) as bench:
        missing = set(wanted) - set(bench.combinations())
        if missing:
            names = ", ".join(f"{runtime}/{precision.value}" for runtime, precision in missing)
            raise UsageError(f"{names} does not work here", mend="see why with `edgekd doctor`")
        rng = random.Random(f"{given.seed}/own")  # noqa: S311 - not cryptography
        specs = draw(bench.space, given.students, rng)[: given.students]
        _measure(bench, given.keep / "took.jsonl", specs, wanted)
        history, space = bench.history(), bench.space
    took = {one.spec: one.seconds for one in read(given.keep / "took.jsonl", Took)}
    return _judged(history, space, wanted, given.samples, took)


def _combination(text: str) -> Combination:
    runtime, _, precision = text.partition("/")
    try:
        return runtime, Precision(precision)
    except ValueError as error:
        raise UsageError(f"{text!r} is no runtime/precision", mend="write onnxruntime/int8") from error


def _measure(
    bench: Workbench, took: Path, specs: Sequence[StudentSpec], wanted: Sequence[Combination]
) -> None:
    known = {trial.proposal.spec for trial in bench.history().trials}
    for number, spec in enumerate(specs, start=1):
        if spec not in known:
            before = bench.device.device_seconds
            time_untrained(bench, spec, wanted)
            append(took, Took(spec=spec, seconds=bench.device.device_seconds - before))
            print(f"{number}/{len(specs)}: {spec}", file=sys.stderr)


def _judged(
    history: History,
    space: Space,
    wanted: Sequence[Combination],
    samples: int,
    took: dict[StudentSpec, float],
) -> dict[str, Any]:
    timed: dict[StudentSpec, dict[Combination, Trial]] = {}
    for trial in history.with_verdict(Verdict.MEASURED):
        proposal = trial.proposal
        timed.setdefault(proposal.spec, {})[proposal.runtime, proposal.precision] = trial
    whole = [spec for spec, trials in timed.items() if set(wanted) <= set(trials)]
    if len(whole) <= samples:
        raise UsageError(f"{len(whole)} students could be measured, and {samples} are to teach")
    teaching = _teaching(whole, timed, space, wanted, samples)
    judging = [spec for spec in whole if spec not in set(teaching)]
    lesson = History(trials=tuple(timed[spec][name] for spec in teaching for name in wanted))
    predictor = predict(lesson, {}, channels=space.channels, classes=space.classes)
    return {
        "students": len(whole),
        "not_built": len({trial.proposal.spec for trial in history.trials} - set(whole)),
        "samples": samples,
        "judging": len(judging),
        "device_seconds": sum(took.get(spec, 0.0) for spec in teaching),
        "combinations": {
            f"{name[0]}/{name[1].value}": _combination_judged(
                predictor, space, name, timed, teaching=teaching, judging=judging
            )
            for name in wanted
        },
    }


def _teaching(
    whole: Sequence[StudentSpec],
    timed: dict[StudentSpec, dict[Combination, Trial]],
    space: Space,
    wanted: Sequence[Combination],
    samples: int,
) -> list[StudentSpec]:
    """Return the students to learn from: nothing but theirs is looked at to choose them."""
    rows = {spec: _row(spec, space) for spec in whole}
    ordered = sorted(whole, key=lambda spec: rows[spec][2] + rows[spec][3])
    chosen = [ordered[round(share * (len(ordered) - 1))] for share in np.linspace(0, 0.9, FIRST)]
    while len(chosen) < samples:
        known = History(trials=tuple(timed[spec][name] for spec in chosen for name in wanted))
        groups = groups_of(known, channels=space.channels, classes=space.classes)
        name = wanted[len(chosen) % len(wanted)]
        shared = shared_of(groups, name, ())
        left = [spec for spec in whole if spec not in chosen]
        (best,) = choose(shared.fit(groups[name]), shared.rows(np.array([rows[spec] for spec in left])), 1)
        chosen.append(left[int(best)])
    return chosen


def _combination_judged(
    predictor: Predictor,
    space: Space,
    name: Combination,
    timed: dict[StudentSpec, dict[Combination, Trial]],
    *,
    teaching: Sequence[StudentSpec],
    judging: Sequence[StudentSpec],
) -> dict[str, Any]:
    truth_ms = _p50_ms(judging, timed, name)
    model = predictor.models[name]
    expected_ms = np.array([model.p50_ms(spec, space.channels, space.classes) for spec in judging])
    reach = predictor.forecast(judging[0], *name, channels=space.channels, classes=space.classes)
    off = reach.high_ms / reach.median_ms
    rows = {spec: _row(spec, space) for spec in (*teaching, *judging)}
    inside = (truth_ms <= expected_ms * off) & (truth_ms >= expected_ms / off)
    peers = {
        "line in multiply-accumulates": _line(rows, timed, name, teaching, judging),
        "boosted trees, as many": _trees(rows, timed, name, teaching, judging),
    }
    if len(judging) > MANY + len(teaching):
        others = judging[MANY:]
        peers[f"boosted trees from {MANY}"] = _trees(rows, timed, name, judging[:MANY], others)
    scored = {label: _shares(found, truth_ms[-len(found) :]) for label, found in peers.items()}
    trust = [latency.trust.verdict.value for spec in timed if (latency := timed[spec][name].latency)]
    return {
        **_shares(expected_ms, truth_ms),
        "coverage90": float(inside.mean()),
        "p50_ms": [float(truth_ms.min()), statistics.median(truth_ms.tolist()), float(truth_ms.max())],
        "noisy_measurements": sum(verdict != "good" for verdict in trust),
        "peers": scored,
    }


def _shares(expected_ms: Floats, truth_ms: Floats) -> dict[str, float]:
    error = np.abs(expected_ms / truth_ms - 1)
    return {
        "within_5_percent": float((error <= 0.05).mean()),
        "within_10_percent": float((error <= 0.10).mean()),
        "spearman": float(spearmanr(expected_ms, truth_ms).statistic),
    }


def _line(
    rows: dict[StudentSpec, Floats],
    timed: dict[StudentSpec, dict[Combination, Trial]],
    name: Combination,
    teaching: Sequence[StudentSpec],
    judging: Sequence[StudentSpec],
) -> Floats:
    work = [rows[spec][2] + rows[spec][3] for spec in teaching]
    slope, start = np.polyfit(work, _p50_ms(teaching, timed, name), 1)
    return np.array([start + slope * (rows[spec][2] + rows[spec][3]) for spec in judging])


def _trees(
    rows: dict[StudentSpec, Floats],
    timed: dict[StudentSpec, dict[Combination, Trial]],
    name: Combination,
    teaching: Sequence[StudentSpec],
    judging: Sequence[StudentSpec],
) -> Floats:
    from sklearn.ensemble import GradientBoostingRegressor

    model = GradientBoostingRegressor(random_state=0)
    model.fit([rows[spec] for spec in teaching], np.log(_p50_ms(teaching, timed, name)))
    return np.asarray(np.exp(model.predict([rows[spec] for spec in judging])))


def _p50_ms(
    specs: Sequence[StudentSpec], timed: dict[StudentSpec, dict[Combination, Trial]], name: Combination
) -> Floats:
    return np.array([latency.percentile(50) for spec in specs if (latency := timed[spec][name].latency)])


def _row(spec: StudentSpec, space: Space) -> Floats:
    return np.array(costs(spec, channels=space.channels, classes=space.classes))


if __name__ == "__main__":
    main()
