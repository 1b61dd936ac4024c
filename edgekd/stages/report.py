"""Write what a run did as one HTML page that needs nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from edgekd.stages import plots
from edgekd.stages.judge_search import first_picks
from edgekd.stages.report_forms import FormRow, form_rows
from edgekd.store.files import write_text
from edgekd.values.bundle import Deployment, LatencySummary, Manifest
from edgekd.values.latency import Latency
from edgekd.values.trial import History, Trial, Verdict

_NONE = "\N{EN DASH}"
_TONES = {
    Verdict.FITS: "good", Verdict.PROMISING: "accent", Verdict.MEASURED: "muted", Verdict.INACCURATE: "warm",
    Verdict.TOO_SLOW: "bad", Verdict.UNBUILDABLE: "bad", Verdict.DIVERGED: "bad", Verdict.NO_GAIN: "muted",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """What a report shows; with a `refusal` in place of a manifest it is the report of a run without a student."""

    name: str
    history: History
    limits_ms: dict[str, float]
    command: str
    manifest: Manifest | None = None  # of the bundle
    latency: Latency | None = None  # of the accepted file, measured for acceptance
    teacher_latency: Latency | None = None  # taken in turns with it
    teacher_accuracy: float | None = None  # on validation samples, as the trials' accuracies are
    accuracy_floor: float | None = None  # likewise
    confidence: float = 0.95
    metric: str = "accuracy"
    refusal: str = ""
    relaxation: str = ""
    size_bytes: int | None = None  # of the accepted deployment's files
    seconds: float | None = None
    device_seconds: float | None = None
    train_seconds: float | None = None


def report(path: Path, content: ReportContent) -> Path:
    """Write the page to `path` and return it; the same content gives the same bytes.

    Raises:
        ResourcesExhausted: the disk is full.

    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(c=content, v=_view(content))
    return write_text(path, page + "\n")


@dataclass(frozen=True, kw_only=True)
class _Figure:
    name: str
    value: str
    unit: str
    against: str
    share: float | None = None  # of what is allowed


@dataclass(frozen=True, kw_only=True)
class _Facts:
    title: str
    rows: tuple[tuple[str, str], ...]
    code: bool = False


@dataclass(frozen=True, kw_only=True)
class _TrialRow:
    number: int
    accepted: bool
    spec: str
    engine: str
    verdict: str
    tone: str
    p50: str
    p99: str
    p99_upper: str
    accuracy: str
    epochs: str
    seconds: str
    why: str


@dataclass(frozen=True, kw_only=True)
class _DeploymentRow:
    name: str
    threads: int
    file: str
    p50: str
    p90: str
    p99: str
    p99_upper: str
    accuracy: str
    parity: str
    trust: str


@dataclass(frozen=True, kw_only=True)
class _View:
    """The content in words and pictures, in the order of the page."""

    accepted: Deployment | None
    sentence: str
    spec: str
    figures: tuple[_Figure, ...]
    confidence: str
    judged: str
    landscape: Markup | None
    histogram: Markup | None
    run_order: Markup | None
    trust: str
    deployments: tuple[_DeploymentRow, ...]
    forms: tuple[FormRow, ...]
    trials: tuple[_TrialRow, ...]
    tally: str
    metric: str
    facts: tuple[_Facts, ...]


def _view(content: ReportContent) -> _View:
    manifest, latency = content.manifest, content.latency
    at = _accepted_trial(content)
    trials = content.history.trials
    drawn = any(trial.latency is not None for trial in trials)
    return _View(
        accepted=manifest.accepted if manifest else None,
        sentence=_sentence(content, manifest) if manifest else _refusal(content),
        spec=str(manifest.spec) if manifest else "",
        figures=tuple(_figures(content, manifest)) if manifest else (),
        confidence=f"{content.confidence:.0%}",
        judged=" and ".join(content.limits_ms) or "p99",
        # Markup: our own drawing, in which every text was escaped by matplotlib's XML writer.
        landscape=Markup(plots.landscape(_landscape(content, at))) if drawn else None,  # noqa: S704
        histogram=Markup(plots.histogram(latency, content.limits_ms, content.confidence))  # noqa: S704
        if latency
        else None,
        run_order=Markup(plots.run_order(latency, content.teacher_latency, content.limits_ms))  # noqa: S704
        if latency
        else None,
        trust=_trust(manifest.accepted.latency) if manifest else "",
        deployments=tuple(map(_deployment_row, manifest.deployments)) if manifest else (),
        forms=form_rows(trials),
        trials=tuple(_trial_row(i, trial, content, at) for i, trial in enumerate(trials)),
        tally=_tally(trials),
        metric=manifest.accuracy.metric if manifest else content.metric,
        facts=tuple(_facts(content)),
    )


def _accepted_trial(content: ReportContent) -> int | None:
    """Find the trial that the manifest's accepted deployment came from: the last that fits and matches."""
    if content.manifest is None:
        return None
    accepted, spec = content.manifest.accepted, content.manifest.spec
    found = None
    for at, trial in enumerate(content.history.trials):
        proposal = trial.proposal
        same = (proposal.spec, proposal.runtime, proposal.precision) == (
            spec,
            accepted.runtime,
            accepted.precision,
        )
        if same and trial.verdict is Verdict.FITS:
            found = at
    return found


def _landscape(content: ReportContent, accepted: int | None) -> plots.Landscape:
    manifest = content.manifest
    return plots.Landscape(
        trials=content.history.trials,
        accepted=accepted,
        limits_ms=content.limits_ms,
        confidence=content.confidence,
        metric=manifest.accuracy.metric if manifest else content.metric,
        teacher_accuracy=content.teacher_accuracy,
        accuracy_floor=content.accuracy_floor,
        teacher=content.teacher_latency,
    )


def _sentence(content: ReportContent, manifest: Manifest) -> str:
    latency, accuracy = manifest.accepted.latency, manifest.accuracy
    limits = " and ".join(f"{limit:.3f} ms at {name}" for name, limit in content.limits_ms.items())
    upper = (
        f"p99 is {latency.p99:.3f} ms"
        if latency.p99_upper is None
        else f"p99 is at most {latency.p99_upper:.3f} ms with {latency.confidence:.0%} confidence"
    )
    drop = (accuracy.teacher - accuracy.student) * 100
    side = "below" if drop >= 0 else "above"
    return (
        f"Measured on {latency.conditions.hardware.processor}, {upper}; the budget is {limits}. Its {accuracy.metric} on "
        f"{accuracy.test_samples} test samples is {accuracy.student:.2%}, {abs(drop):.2f} points {side} the teacher's."
    )


def _refusal(content: ReportContent) -> str:
    why = (content.refusal or "no student meets the budget").rstrip(".")
    return f"{why[0].upper()}{why[1:]}."


def _figures(content: ReportContent, manifest: Manifest) -> Iterator[_Figure]:
    latency, accuracy = manifest.accepted.latency, manifest.accuracy
    for name, limit_ms in content.limits_ms.items():
        yield _limit_figure(content, latency, name, limit_ms)
    for mode, one in manifest.accepted.modes.items():
        bound = (
            ""
            if one.p99_upper is None
            else f", at most {one.p99_upper:.3f} ms ({one.confidence:.0%} confidence)"
        )
        against = f"p50 {one.p50:.3f} ms{bound}"
        yield _Figure(name=f"p99, {mode}", value=_ms(one.p99), unit="ms", against=against)
    drop = (accuracy.teacher - accuracy.student) * 100
    yield _Figure(
        name=f"{accuracy.metric} on test samples",
        value=f"{accuracy.student * 100:.2f}",
        unit="%",
        against=f"teacher {accuracy.teacher * 100:.2f} %, a difference of {-drop:+.2f} points",
    )
    if manifest.teacher_latency is not None:
        yield _Figure(
            name="faster than the teacher",
            value=f"{manifest.teacher_latency.p50 / latency.p50:.1f}",
            unit="times, at p50",
            against=f"teacher p50 {manifest.teacher_latency.p50:.3f} ms, student {latency.p50:.3f} ms",
        )
    if (energy := manifest.accepted.energy) is not None:
        name = "energy of an inference, at most (95 % confidence)"
        yield _Figure(name=name, value=f"{energy.upper_mj:.3f}", unit="mJ", against=energy.words)
    picks = first_picks(content.history)
    if picks.timed:
        yield _Figure(
            name="first picks that broke the budget",
            value=f"{picks.share * 100:.0f}",
            unit="%",
            against=f"{picks.broken} of {picks.timed} students were too slow when timed, before any training",
        )
    if content.size_bytes is not None:
        against = f"{len(manifest.accepted.files)} file(s) on {manifest.accepted.name}"
        yield _Figure(name="size", value=f"{content.size_bytes / 1e6:.2f}", unit="MB", against=against)


def _limit_figure(content: ReportContent, latency: LatencySummary, name: str, limit_ms: float) -> _Figure:
    bound_ms = _bound_ms(content, latency, name)
    return _Figure(
        name=f"{name}, at most ({latency.confidence:.0%} confidence)",
        value=_ms(bound_ms),
        unit="ms",
        against=f"{bound_ms / limit_ms:.0%} of the limit of {limit_ms:.3f} ms",
        share=bound_ms / limit_ms,
    )


def _bound_ms(content: ReportContent, latency: LatencySummary, name: str) -> float:
    if content.latency is not None:
        bound_ms = content.latency.upper_bound(float(name.removeprefix("p")), latency.confidence)
        if math.isfinite(bound_ms):
            return bound_ms
    if name == "p99" and latency.p99_upper is not None:
        return latency.p99_upper
    return float(getattr(latency, name))


def _trust(latency: LatencySummary) -> str:
    reasons = "; ".join(latency.trust.reasons)
    launches = latency.protocol.launches
    taken = f"{latency.samples} samples from {launches} {'launch' if launches == 1 else 'launches'}"
    return f"Trust: {latency.trust.verdict.value}{f' ({reasons})' if reasons else ''}; {taken}."


def _deployment_row(deployment: Deployment) -> _DeploymentRow:
    latency, parity = deployment.latency, deployment.parity
    return _DeploymentRow(
        name=deployment.name,
        threads=deployment.threads,
        file=deployment.files[0],
        p50=_ms(latency.p50),
        p90=_ms(latency.p90),
        p99=_ms(latency.p99),
        p99_upper=_ms(latency.p99_upper),
        accuracy=_percent(deployment.accuracy),
        parity=_NONE if parity is None else parity.words,
        trust=latency.trust.verdict.value,
    )


def _trial_row(at: int, trial: Trial, content: ReportContent, accepted: int | None) -> _TrialRow:
    latency = trial.latency
    upper_ms = latency.upper_bound(99.0, content.confidence) if latency else None
    return _TrialRow(
        number=at + 1,
        accepted=at == accepted,
        spec=str(trial.proposal.spec),
        engine=f"{trial.proposal.runtime}/{trial.proposal.precision.value}",
        verdict="accepted" if at == accepted else trial.verdict.value,
        tone=_TONES[trial.verdict],
        p50=_ms(latency.percentile(50.0) if latency else None),
        p99=_ms(latency.percentile(99.0) if latency else None),
        p99_upper=_ms(upper_ms),
        accuracy=_percent(trial.accuracy),
        epochs=str(trial.epochs) if trial.epochs else _NONE,
        seconds=f"{trial.seconds:.0f}" if trial.seconds else _NONE,
        why=trial.why,
    )


def _tally(trials: Iterable[Trial]) -> str:
    counts = Counter(trial.verdict.value for trial in trials)
    total = sum(counts.values())
    return f"{total} {'trial' if total == 1 else 'trials'}: " + ", ".join(
        f"{n} {name}" for name, n in counts.items()
    )


def _facts(content: ReportContent) -> Iterator[_Facts]:
    manifest = content.manifest
    if manifest is not None:
        digests = ("teacher", "data", "job", "calibration")
        rows = tuple((name, getattr(manifest, f"{name}_sha256") or "none") for name in digests)
        yield _Facts(title="Made from (sha256)", rows=rows, code=True)
        yield _Facts(title="Files (sha256)", rows=tuple(manifest.files.items()), code=True)
    measured = manifest.accepted.latency if manifest else _first_latency(content)
    if measured is not None:
        yield _machine(measured)
        yield _how(measured)
    if manifest is not None:
        versions = (*manifest.tools.items(), ("seed", str(manifest.seed)))
        yield _Facts(title="Tools on the host", rows=versions)
    spent = (
        ("whole run", content.seconds), ("on the device", content.device_seconds), ("training", content.train_seconds),
    )  # fmt: skip
    if rows := tuple((name, f"{seconds:.0f} s") for name, seconds in spent if seconds is not None):
        yield _Facts(title="Time spent", rows=rows)


def _first_latency(content: ReportContent) -> Latency | None:
    return next((trial.latency for trial in content.history.trials if trial.latency is not None), None)


def _machine(measured: LatencySummary | Latency) -> _Facts:
    hardware, software = measured.conditions.hardware, measured.conditions.software
    rows = (
        ("processor", f"{hardware.processor} ({hardware.machine})"),
        ("cores, memory", f"{hardware.cores}, {hardware.memory_mib / 1024:.1f} GiB"),
        ("features", ", ".join(hardware.features) or "none known"),
        ("system", f"{software.system} {software.kernel}, Python {software.python}"),
        ("runtimes", ", ".join(f"{name} {version}" for name, version in software.runtimes.items())),
        ("governor", software.governor),
        ("fingerprint", measured.conditions.fingerprint[:16]),
    )
    return _Facts(title="Measured on", rows=rows)


def _how(measured: LatencySummary | Latency) -> _Facts:
    protocol, load, trust = measured.protocol, measured.conditions.load, measured.trust
    temperature = () if load.temperature_c is None else (("temperature", f"{load.temperature_c:.0f} °C"),)
    clock = () if load.clock_mhz is None else (("clock", f"{load.clock_mhz:.0f} MHz"),)
    rows = (
        ("trust", trust.verdict.value),
        *(("reason", reason) for reason in trust.reasons),
        ("protocol", f"version {protocol.version}, {protocol.launches} launches of {protocol.blocks} blocks"),
        ("samples a block", f"{protocol.samples}, after at least {protocol.warmup_ms:g} ms of warm-up"),
        ("other processes", f"{load.others_percent:.1f} % of a core, load average {load.load_average:.2f}"),
        ("stolen time", f"{load.steal_percent:.1f} %, {load.involuntary_switches} involuntary switches"),
        *temperature,
        *clock,
    )
    return _Facts(title="Measured how", rows=rows)


def _ms(value: float | None) -> str:
    return _NONE if value is None or not math.isfinite(value) else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value * 100:.2f} %"
