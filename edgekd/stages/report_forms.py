"""The compiled forms of fully distilled students: which no other beats in both latency and accuracy, and what int8 cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekd.values.trial import Trial
from edgekd.values.variant import Exchange


@dataclass(frozen=True, kw_only=True)
class FormRow:
    """One compiled form of a student that was distilled fully, in words."""

    student: str
    form: str  # "openvino/int8, nncf"
    p50: str
    metric: str
    on_frontier: bool  # no other form of any student is as fast and more accurate
    note: str  # what its accuracy was bought for, or why it does not ship


def form_rows(trials: Sequence[Trial]) -> tuple[FormRow, ...]:
    """Return the forms by latency, those of all finished students together: precision and width compete here."""
    measured = [one for one in trials if one.engine and one.latency and one.accuracy is not None]
    ordered = sorted(measured, key=lambda one: (_p50_ms(one), -(one.accuracy or 0.0)))
    rows, best = [], -1.0
    for trial in ordered:
        accuracy = trial.accuracy or 0.0
        ahead = accuracy > best
        best = max(best, accuracy)
        rows.append(
            FormRow(
                student=str(trial.proposal.spec),
                form=_form(trial),
                p50=f"{_p50_ms(trial):.3f}",
                metric=f"{accuracy * 100:.2f} %",
                on_frontier=ahead,
                note=exchanged(trial.exchange) if trial.exchange else trial.why,
            )
        )
    return tuple(rows)


def exchanged(one: Exchange) -> str:
    """Say what accuracy cost: "1 segment in float: 0.50 to 0.10 points lost for +0.020 ms, 0.0500 ms a point"."""
    segments = "segment" if len(one.kept) == 1 else "segments"
    said = (
        f"{len(one.kept)} {segments} in float: {one.before_points:.2f} to {one.after_points:.2f} points lost"
    )
    rate = "" if one.ms_per_point is None else f", {one.ms_per_point:.4f} ms a point"
    return f"{said} for {one.after_ms - one.before_ms:+.3f} ms{rate}"


def _p50_ms(trial: Trial) -> float:
    assert trial.latency is not None  # noqa: S101 - measured ones have one
    return trial.latency.percentile(50.0)


def _form(trial: Trial) -> str:
    how = f", {trial.quantization.name}" if trial.quantization else ""
    return f"{trial.proposal.runtime}/{trial.proposal.precision.value}{how}"
