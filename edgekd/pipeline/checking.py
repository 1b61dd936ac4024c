"""The order of `edgekd check`: name both sides, compare them on the device, correct for how many were asked."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edgekd.devices import Device, connect
from edgekd.errors import EdgekdError, UsageError
from edgekd.stages.announce import announce
from edgekd.stages.baseline import hold, measure_baseline, read_baseline, write_baseline
from edgekd.stages.compare import compare
from edgekd.stages.rebuild import rebuild
from edgekd.stages.score import Labelled, labelled, score
from edgekd.stages.subject import Subject, check_alike, is_bundle, subject
from edgekd.stages.weigh import Rivals, Side
from edgekd.store.measurements import GateLog
from edgekd.timing.changes import change_points
from edgekd.timing.duet import holm
from edgekd.values.gate import Comparison, Gate, GateEntry, GateRules, GateVerdict, Question
from edgekd.values.preprocess import Normalisation
from edgekd.values.target import Target

log = logging.getLogger(__name__)

BUILD_TIMEOUT_S = 3600.0  # of --base-cmd
RELEASE_MARGIN = 0.05  # against slow boiling: what many small steps may add up to
_WORST_FIRST = (
    GateVerdict.FAIL,
    GateVerdict.ENVIRONMENT,
    GateVerdict.INCONCLUSIVE,
    GateVerdict.PASS,
    GateVerdict.IMPROVED,
)
_MODELS = (".onnx", ".xml")


def check(
    question: Question,
    target: Target,
    *,
    out: Path,
    history: Path | None,
    summary: Path | None,
    date: str,
) -> Gate:
    """Compare every candidate with its base, and write what CI reads into `out`.

    Args:
        question: what is compared.
        target: where.
        out: the folder of raw pairs, reports and `gate.json`.
        history: the SQLite file that every comparison is added to; None: none.
        summary: the file that the comment is appended to; None: none.
        date: now, UTC, for the history and a baseline.

    Raises:
        UsageError: a file is missing, or the CPU clock is asked for with several threads.
        ModelError: a model cannot be run, or both sides take different inputs.
        BackendMissing: no runtime of the target works.
        NoBaseline: the baseline is missing, or was measured under other conditions.

    """
    start, rules = time.monotonic(), question.rules
    with connect(target) as device, TemporaryDirectory(prefix="edgekd-") as scratch:
        comparisons = _held(device, question, target, date)
        asked = _rivals(device, question, target, Path(scratch))
        comparisons += [
            _compared(out, device, rivals, own, rules.alpha / len(asked)) for rivals, own in asked
        ]
    judged = corrected(comparisons, rules)
    gate = Gate(
        verdict=overall(judged),
        comparisons=judged,
        rules=rules,
        seconds=time.monotonic() - start,
        changes=_remembered(history, judged, date),
    )
    announce(out, gate, command=question.command, summary=summary)
    return gate


def overall(comparisons: Sequence[Comparison]) -> GateVerdict:
    """Return the verdict of a whole call: the worst one; IMPROVED only where nothing else is."""
    found = {one.verdict for one in comparisons}
    return next(verdict for verdict in _WORST_FIRST if verdict in found)


def corrected(comparisons: Sequence[Comparison], rules: GateRules) -> tuple[Comparison, ...]:
    """Apply Holm's step-down correction, so that a whole call is wrong no more often than one comparison.

    Each was stopped at its share of alpha (Bonferroni's); where some are clear, what is left of the others
    may be judged less strictly (Holm 1979, Scand. J. Statist. 6:65; group-sequential: Ye et al. 2013).
    """
    failing = holm([one.p_fail for one in comparisons], rules.alpha)
    return tuple(
        replace(one, verdict=GateVerdict.FAIL, reasons=("clear beside the others (Holm)",))
        if fails and one.verdict is GateVerdict.INCONCLUSIVE
        else one
        for one, fails in zip(comparisons, failing)
    )


def paired(base: Path, candidate: Path) -> tuple[tuple[Path, Path], ...]:
    """Pair two models; or, of two folders, the models and bundles that have the same name in both.

    Raises:
        UsageError: the folders share no name, or one side is a folder and the other a model.

    """
    folders = [path.is_dir() and not is_bundle(path) for path in (base, candidate)]
    if not any(folders):
        return ((base, candidate),)
    names = [_names(path) if folder else set() for path, folder in zip((base, candidate), folders)]
    common = sorted(names[0] & names[1])
    if not common:
        raise UsageError(
            f"{base} and {candidate} hold no model of the same name",
            mend="give two models, two bundles, or two folders of models",
        )
    for name in sorted(names[0] ^ names[1]):
        log.warning("%s is on one side only: it is not compared", name)
    return tuple((base / name, candidate / name) for name in common)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix in _MODELS or is_bundle(path)}


def _held(device: Device, question: Question, target: Target, date: str) -> list[Comparison]:
    """Hold the candidate against absolute limits, where a baseline is given."""
    if question.baseline is None:
        return []
    runtime = question.runtimes[0] if question.runtimes else ""
    candidate = subject(device, question.models[-1], target, runtime=runtime, shapes=question.shapes)
    if question.update:
        made = measure_baseline(device, candidate, question.rules, question.limits_ms, date)
        write_baseline(question.baseline, made)
    return [hold(device, candidate, read_baseline(question.baseline), question.rules)]


def _rivals(
    device: Device, question: Question, target: Target, scratch: Path
) -> list[tuple[Rivals, GateRules]]:
    rules, known = question.rules, labelled(question.data, scratch) if question.data else None
    released = replace(rules, margin=max(rules.margin, RELEASE_MARGIN))
    pairs, candidates = _pairs(question, scratch)
    against = [
        *((pair, "base", rules) for pair in pairs),
        *(((question.release, one), "release", released) for one in candidates if question.release),
    ]
    return [
        (_facing(device, question, target, known, paths=paths, runtime=runtime, against=word), own)
        for runtime in question.runtimes or ("",)
        for paths, word, own in against
    ]


def _pairs(question: Question, scratch: Path) -> tuple[tuple[tuple[Path, Path], ...], tuple[Path, ...]]:
    """Return (base, candidate) for each, and the candidates."""
    if len(question.models) == 1:
        if question.release is None and question.baseline is None:
            raise UsageError(
                "there is nothing to compare the candidate with",
                mend="give BASE CANDIDATE, or --release MODEL, or --baseline FILE",
            )
        return (), question.models
    if len(question.models) != 2:  # noqa: PLR2004 - a base and a candidate
        mend = "to compare several, give two folders that hold files of the same names"
        raise UsageError(f"{len(question.models)} models were given, not a base and a candidate", mend=mend)
    base, candidate = question.models
    if question.base_command:
        base = rebuild(scratch / "base", str(base), question.base_command, timeout_s=BUILD_TIMEOUT_S)
    pairs = paired(base, candidate)
    return pairs, tuple(one for _, one in pairs)


def _facing(
    device: Device,
    question: Question,
    target: Target,
    known: Labelled | None,
    *,
    paths: tuple[Path, Path],
    runtime: str,
    against: str,
) -> Rivals:
    """Name both sides and check that they are asked the same question."""
    named: dict[Path, Subject] = {}
    for path in sorted(paths, key=lambda path: not path.is_dir()):
        # A bare model runs as the bundle beside it does; two bundles each as they ship.
        own = "" if path.is_dir() else next((one.engine.runtime for one in named.values()), "")
        named[path] = subject(device, path, target, runtime=runtime or own, shapes=question.shapes)
    old, new = (named[path] for path in paths)
    check_alike(old, new)
    if question.rules.clock.value == "cpu" and max(old.engine.threads, new.engine.threads) > 1:
        mend = "give --threads 1, or leave --clock out"
        raise UsageError("the CPU clock judges single-threaded inference only", mend=mend)
    base, candidate = _sides(device, old, new, known, question.normalisation)
    return Rivals(name=paths[1].name, base=base, candidate=candidate, against=against)


def _sides(
    device: Device, old: Subject, new: Subject, known: Labelled | None, normalisation: Normalisation | None
) -> tuple[Side, Side]:
    base, candidate = (Side(path=str(one.path), engine=one.engine) for one in (old, new))
    if known is None:
        return base, candidate
    with TemporaryDirectory(prefix="edgekd-") as folder:
        rights = [
            score(Path(folder) / word, device, one, known, normalisation)
            for word, one in (("base", old), ("candidate", new))
        ]
    return (
        replace(base, accuracy=float(rights[0].mean()), better=int(np.sum(rights[0] & ~rights[1]))),
        replace(candidate, accuracy=float(rights[1].mean()), better=int(np.sum(rights[1] & ~rights[0]))),
    )


def _compared(out: Path, device: Device, rivals: Rivals, rules: GateRules, alpha: float) -> Comparison:
    engine = rivals.candidate.engine
    log.info("%s against %s on %s", rivals.name, rivals.against, engine.name)
    folder = out / "pairs" / f"{rivals.name}-{rivals.against}-{engine.runtime}"
    found = compare(folder, device, rivals, rules, alpha=alpha)
    log.info("  %s after %d pairs, %.0f s", found.verdict.value, found.pairs, found.seconds)
    return found


def _remembered(history: Path | None, comparisons: Sequence[Comparison], date: str) -> tuple[str, ...]:
    """Add the comparisons to the history, and name what changed in it; what is wrong with it blocks nothing."""
    if history is None:
        return ()
    try:
        gates = GateLog(history)
        for one in comparisons:
            gates.record(_entry(one, date))
        return tuple(change for one in comparisons for change in _changes(gates, one))
    except (EdgekdError, OSError) as error:
        log.warning("the history is left out: %s", error)
        return ()


def _changes(gates: GateLog, one: Comparison) -> list[str]:
    series = gates.series(one.name, one.conditions.fingerprint, one.runtime)
    told = [entry for entry in series if entry.against == one.against and entry.reference_p50_ms]
    # Against the reference of the same minutes: what the machine did to both is not the model's doing.
    steps = [math.log(entry.candidate_p50_ms / (entry.reference_p50_ms or 1.0)) for entry in told]
    return [
        f"{one.name} on {one.runtime}: {math.exp(change.after - change.before) - 1:+.1%} "
        f"since {told[change.at].time}"
        for change in change_points(steps)
    ]


def _entry(one: Comparison, date: str) -> GateEntry:
    ratio = one.ratio
    return GateEntry(
        time=date,
        fingerprint=one.conditions.fingerprint,
        name=one.name,
        against=one.against,
        runtime=one.runtime,
        base_sha256=one.base.sha256,
        candidate_sha256=one.candidate.sha256,
        ratio=ratio.estimate if ratio else None,
        low=ratio.low if ratio and math.isfinite(ratio.low) and ratio.low > 0 else None,
        high=ratio.high if ratio and math.isfinite(ratio.high) else None,
        verdict=one.verdict,
        base_p50_ms=one.base.p50_ms,
        candidate_p50_ms=one.candidate.p50_ms,
        reference_p50_ms=one.reference_p50_ms,
    )
