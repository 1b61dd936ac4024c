"""The report's pictures, as SVG that takes its colours and its type from the page around it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from edgekd.values.budget import RANKS
from edgekd.values.latency import Latency
from edgekd.values.trial import Trial, Verdict

# Stand-ins that become `var(--name)` in the page, so that one picture serves light and dark.
_COLOURS = {
    "ink": "#0a0b01", "muted": "#0a0b02", "line": "#0a0b03", "accent": "#0a0b04", "good": "#0a0b05",
    "bad": "#0a0b06", "warm": "#0a0b07", "paper": "#0a0b08",
}  # fmt: skip
_INK, _MUTED, _LINE, _ACCENT, _GOOD, _BAD, _WARM, _PAPER = _COLOURS.values()
_STYLE: dict[str, object] = {
    "svg.fonttype": "none", "text.parse_math": False, "path.simplify": False, "font.size": 8.5,
    "axes.edgecolor": _LINE, "axes.labelcolor": _MUTED, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.8, "xtick.color": _LINE, "ytick.color": _LINE, "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED, "text.color": _INK, "grid.color": _LINE, "grid.linewidth": 0.5,
    "legend.frameon": False, "legend.labelcolor": _MUTED, "legend.fontsize": 8.0,
}  # fmt: skip
_CLUTTER = (
    re.compile(r"<metadata>.*?</metadata>", re.DOTALL),
    re.compile(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", re.DOTALL),  # it would style the whole page
    re.compile(r" id=\"[a-zA-Z.]+\d?_\d+\""),  # figure_1, axes_1, ...: every picture has them
    re.compile(r" font-family: [^;\"]*;?"),
    re.compile(r" target=\"_blank\""),
)
_MOST_NUMBERS = 30  # of points labelled with their trial
_RUG = {Verdict.TOO_SLOW: ("too slow", _BAD), Verdict.MEASURED: ("timed untrained", _MUTED)}
_KINDS = {  # name in the legend, marker, face, edge
    "accepted": ("accepted", "*", _GOOD, _GOOD),
    Verdict.FITS.value: ("fits", "o", _GOOD, _GOOD),
    Verdict.INACCURATE.value: ("below the accuracy allowed", "o", _WARM, _WARM),
    Verdict.TOO_SLOW.value: ("too slow", "o", _BAD, _BAD),
    Verdict.NO_GAIN.value: ("int8 without gain", "o", _PAPER, _MUTED),
    Verdict.UNBUILDABLE.value: ("differs from torch", "s", _BAD, _BAD),
    Verdict.PROMISING.value: ("distilled briefly", "o", _PAPER, _ACCENT),
    Verdict.DIVERGED.value: ("diverged", "s", _MUTED, _MUTED),
    Verdict.MEASURED.value: ("timed untrained", "o", _MUTED, _MUTED),
}


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """What the accuracy-latency picture shows."""

    trials: Sequence[Trial]
    accepted: int | None  # index of the trial
    limits_ms: Mapping[str, float]
    confidence: float
    metric: str
    teacher_accuracy: float | None
    accuracy_floor: float | None
    teacher: Latency | None


def landscape(shown: Landscape) -> str:
    """Draw accuracy against measured latency; whiskers end where the budget is judged.

    Students distilled fully and briefly stand in panels of their own: their accuracies do not compare.
    """
    panels = _panels(shown)
    with mpl.rc_context(_STYLE):
        heights = [4.2 if not at else 3.2 for at in range(len(panels))] + [1.0]
        figure = Figure(figsize=(9.6, 1.0 + 0.62 * sum(heights)), layout="constrained")
        *mains, rug = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[
            :, 0
        ]
        _axes_of_latency(rug, shown)
        for axes, (title, members) in zip(mains, panels.items()):
            _draw_panel(axes, title, members, shown)
        if mains:
            _draw_teacher(mains[0], shown)
            _legend(mains[0], shown)
        _draw_budget([*mains, rug], shown)
        _draw_rug(rug, shown)
        return _svg(figure, "accuracy against latency")


def histogram(latency: Latency, limits_ms: Mapping[str, float], confidence: float) -> str:
    """Draw how the accepted file's inference times are spread."""
    samples = np.asarray(latency.undisturbed_ms)
    upper_ms = latency.upper_bound(99.0, confidence)
    marks = {"p50": latency.percentile(50.0), "p99": latency.percentile(99.0)}
    end = max(marks["p99"], upper_ms if math.isfinite(upper_ms) else 0.0, *limits_ms.values(), 0.0) * 1.06
    start = max(0.0, float(samples.min()) - 0.12 * (end - float(samples.min())))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 3.1), layout="constrained")
        axes = figure.subplots()
        axes.hist(
            np.clip(samples, start, end),
            bins=[float(edge) for edge in np.linspace(start, end, 61)],
            color=_ACCENT,
            alpha=0.85,
        )
        axes.set_ylim(0, axes.get_ylim()[1] * 1.3)  # room for the names of the marks
        for row, (name, at) in enumerate(marks.items()):
            _mark(axes, at, name, _INK, row)
        if math.isfinite(upper_ms):
            _mark(axes, upper_ms, f"p99 at most ({confidence:.0%})", _GOOD, 2)
        for name, at in limits_ms.items():
            _mark(axes, at, f"{name} limit", _BAD, 3)
        axes.set_xlim(start, end * 1.02)
        axes.set_xlabel("latency, ms")
        axes.set_ylabel("inferences")
        if beyond := int((samples > end).sum()):
            axes.annotate(
                f"{beyond} beyond →", (0.995, 0.06), xycoords="axes fraction", ha="right", color=_MUTED
            )
        return _svg(figure, "histogram")


def run_order(latency: Latency, teacher: Latency | None, limits_ms: Mapping[str, float]) -> str:
    """Draw inference times in the order they were taken: drift, throttling and outliers show here."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 3.1), layout="constrained")
        axes = figure.subplots()
        if teacher is not None:
            _dots(axes, teacher, _MUTED, 0.35)
        _dots(axes, latency, _ACCENT, 0.9)
        for name, limit_ms in limits_ms.items():
            axes.axhline(limit_ms, color=_BAD, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(f"{name} limit", (0.995, limit_ms), (0, 2),
                          textcoords="offset points", xycoords=("axes fraction", "data"), ha="right",
                          va="bottom", color=_BAD, fontsize=7.5)  # fmt: skip
        _launches(axes, latency)
        axes.set_yscale("log")
        _log_ms(axes.yaxis)
        drawn = [ms for one in (latency, teacher) if one is not None for ms in one.undisturbed_ms]
        # What a neighbour's turn on the core adds may run off the top: it is the neighbour's.
        axes.set_ylim(0.85 * min(drawn), 1.2 * max(*drawn, *limits_ms.values()))
        axes.set_ylabel("latency, ms")
        axes.set_xlabel("run order; one column a launch of a fresh process, thin lines between blocks")
        axes.set_xlim(0, 1)
        return _svg(figure, "run order")


def _panels(shown: Landscape) -> dict[str, list[int]]:
    panels: dict[str, list[int]] = {}
    drawn = [at for at, t in enumerate(shown.trials) if t.accuracy is not None and t.latency is not None]
    for title, brief in (("distilled fully", False), ("distilled briefly", True)):
        members = [at for at in drawn if (shown.trials[at].verdict is Verdict.PROMISING) is brief]
        if members:
            panels[title] = members
    return panels


def _draw_panel(axes: Axes, title: str, members: list[int], shown: Landscape) -> None:
    axes.tick_params(axis="x", which="both", length=0, labelbottom=False)
    for at in members:
        _draw_trial(axes, at, shown.trials[at], shown)
    axes.set_ylabel(f"{shown.metric}, %\n{title}")
    axes.grid(visible=True, axis="y")
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(y=0.18)


def _axes_of_latency(axes: Axes, shown: Landscape) -> None:
    axes.set_xscale("log")
    _log_ms(axes.xaxis)
    axes.set_xlabel("measured latency of one inference, ms (logarithmic)")
    ends = [*shown.limits_ms.values()]
    for latency in (*(trial.latency for trial in shown.trials), shown.teacher):
        if latency is not None:
            ends += [latency.percentile(50.0), _whisker_ms(latency, shown)]
    if ends:
        axes.set_xlim(min(ends) / 1.25, max(ends) * 1.25)


def _log_ms(axis: object) -> None:
    """Write plain numbers on a logarithmic axis, close enough to read a latency off."""
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=30))  # type: ignore[attr-defined]
    axis.set_major_formatter(plain)  # type: ignore[attr-defined]
    axis.set_minor_formatter(NullFormatter())  # type: ignore[attr-defined]


def _draw_trial(axes: Axes, at: int, trial: Trial, shown: Landscape) -> None:
    assert trial.latency is not None and trial.accuracy is not None  # noqa: S101, PT018 - selected so
    p50_ms, end_ms, accuracy = (
        trial.latency.percentile(50.0),
        _whisker_ms(trial.latency, shown),
        trial.accuracy * 100,
    )
    accepted = at == shown.accepted
    _, marker, face, colour = _KINDS[_kind(trial, accepted=accepted)]
    alpha = 1.0 if accepted else 0.6
    axes.plot(
        [p50_ms, end_ms], [accuracy] * 2, color=colour, linewidth=1.1, alpha=alpha, solid_capstyle="butt"
    )
    axes.plot([end_ms], [accuracy], marker="|", markersize=6, color=colour, alpha=alpha)
    dot = axes.scatter([p50_ms], [accuracy], s=110 if accepted else 34, marker=marker, facecolor=face,
                       edgecolor=colour, linewidth=1.2, zorder=5 if accepted else 4)  # fmt: skip
    dot.set_urls([f"#trial-{at + 1}"])
    if len(shown.trials) <= _MOST_NUMBERS or accepted:
        name = f"{at + 1}, accepted" if accepted else str(at + 1)
        axes.annotate(name, (p50_ms, accuracy), (-5, 4), textcoords="offset points", ha="right", fontsize=7.5,
                      color=_INK if accepted else _MUTED, weight="bold" if accepted else "normal")  # fmt: skip


def _kind(trial: Trial, *, accepted: bool) -> str:
    return "accepted" if accepted else trial.verdict.value


def _whisker_ms(latency: Latency, shown: Landscape) -> float:
    """Return the bound that the budget judges; where the samples are too few for it, the slowest sample."""
    ranks = [RANKS[name] for name in shown.limits_ms] or [99.0]
    bound = latency.upper_bound(max(ranks), shown.confidence)
    return bound if math.isfinite(bound) else max(latency.samples_ms)


def _draw_teacher(axes: Axes, shown: Landscape) -> None:
    if shown.accuracy_floor is not None:
        axes.axhline(shown.accuracy_floor * 100, color=_WARM, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate("lowest accuracy allowed", (0.995, shown.accuracy_floor * 100), (0, -3), color=_WARM,
                      xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", va="top")  # fmt: skip
    if shown.teacher_accuracy is None:
        return
    accuracy = shown.teacher_accuracy * 100
    axes.axhline(accuracy, color=_MUTED, linewidth=0.8, zorder=1)
    if shown.teacher is None:
        axes.annotate("teacher", (0.995, accuracy), (0, 3), xycoords=("axes fraction", "data"),
                      textcoords="offset points", ha="right", weight="bold")  # fmt: skip
        return
    p50_ms = shown.teacher.percentile(50.0)
    axes.plot(
        [p50_ms, _whisker_ms(shown.teacher, shown)], [accuracy] * 2, color=_INK, linewidth=1.1, zorder=3
    )
    axes.scatter([p50_ms], [accuracy], s=40, marker="D", color=_INK, zorder=4)
    axes.annotate(
        "teacher", (p50_ms, accuracy), (-6, 5), textcoords="offset points", ha="right", weight="bold"
    )


def _draw_budget(panels: Sequence[Axes], shown: Landscape) -> None:
    for name, limit_ms in shown.limits_ms.items():
        for axes in panels:
            axes.axvline(limit_ms, color=_BAD, linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
        panels[0].annotate(f"{name} limit {limit_ms:.3g} ms", (limit_ms, 0.02), (5, 0), color=_BAD,
                           xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
    if shown.limits_ms:
        least_ms = min(shown.limits_ms.values())
        for axes in panels:
            axes.axvspan(least_ms, axes.get_xlim()[1], color=_BAD, alpha=0.05, linewidth=0, zorder=0)


def _draw_rug(axes: Axes, shown: Landscape) -> None:
    for row, (verdict, (_, colour)) in enumerate(_RUG.items()):
        for at, trial in enumerate(shown.trials):
            if trial.verdict is verdict and trial.accuracy is None and trial.latency is not None:
                (tick,) = axes.plot(
                    [trial.latency.percentile(50.0)], [row], marker="|", markersize=8, color=colour
                )
                tick.set_url(f"#trial-{at + 1}")
    axes.set_yticks(range(len(_RUG)), [name for name, _ in _RUG.values()])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.7, len(_RUG) - 0.3)


def _legend(axes: Axes, shown: Landscape) -> None:
    drawn = {
        _kind(trial, accepted=at == shown.accepted)
        for at, trial in enumerate(shown.trials)
        if trial.accuracy is not None and trial.latency is not None
    }
    for kind, (name, marker, face, edge) in _KINDS.items():
        if kind in drawn:
            size = 9.0 if kind == "accepted" else 5.5
            axes.plot([], [], linestyle="", marker=marker, markerfacecolor=face, markeredgecolor=edge,
                      markersize=size, label=name)  # fmt: skip
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(_KINDS), handletextpad=0.1)


def _mark(axes: Axes, at: float, name: str, colour: str, row: int) -> None:
    top = axes.get_ylim()[1]
    axes.axvline(at, ymax=0.98 - 0.075 * row, color=colour, linewidth=1.1)
    left, right = axes.get_xlim()
    side = "right" if at > (left + right) / 2 else "left"
    axes.annotate(f"{name} {at:.3f}", (at, top * (0.98 - 0.075 * row)), (-4 if side == "right" else 4, 0),
                  textcoords="offset points", ha=side, va="top", color=colour, fontsize=7.5)  # fmt: skip


def _dots(axes: Axes, latency: Latency, colour: str, alpha: float) -> None:
    """Draw every sample as one short stroke of a single path: small in the file, whatever the count."""
    count = len(latency.samples_ms)
    x = (np.arange(count) + 0.5) / count
    xs = np.column_stack([x, x + 1e-5, np.full(count, np.nan)]).ravel()
    ys = np.repeat(np.asarray(latency.samples_ms), 3)
    axes.plot(xs, ys, color=colour, alpha=alpha, linewidth=2.0, solid_capstyle="round")


def _launches(axes: Axes, latency: Latency) -> None:
    protocol = latency.protocol
    blocks = protocol.launches * protocol.blocks
    for at in range(1, blocks):
        between_launches = at % protocol.blocks == 0
        axes.axvline(at / blocks, color=_LINE, linewidth=1.4 if between_launches else 0.4, zorder=0)
    axes.set_xticks(
        [(launch + 0.5) / protocol.launches for launch in range(protocol.launches)],
        [f"launch {launch + 1}" for launch in range(protocol.launches)],
    )
    axes.tick_params(axis="x", length=0)


def _svg(figure: Figure, title: str) -> str:
    """Return an <svg> element to stand inside a page: no prologue, no ids of its own, the page's colours."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for clutter in _CLUTTER:
        text = clutter.sub("", text)
    for name, colour in _COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return re.sub(
        r"<svg[^>]*?( viewBox=\"[^\"]*\")[^>]*>", rf'<svg role="img" aria-label="{title}"\1>', text, count=1
    )
