"""The words that every output of the gate shares."""

from __future__ import annotations

import math
import unicodedata

from edgekd.values.gate import Arm, Comparison, Gate, GateRules, GateVerdict, Ratio

DASH = "\N{EN DASH}"
_BARS = "▁▂▃▄▅▆▇█"
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, bidirectional overrides, surrogates
_GRAVITY = {
    GateVerdict.FAIL: 0, GateVerdict.ENVIRONMENT: 1, GateVerdict.INCONCLUSIVE: 2, GateVerdict.IMPROVED: 3,
    GateVerdict.PASS: 4,
}  # fmt: skip
_MEANING = {
    GateVerdict.PASS: "no regression",
    GateVerdict.IMPROVED: "faster by more than the margin",
    GateVerdict.FAIL: "regression",
    GateVerdict.INCONCLUSIVE: "too noisy for this question",
    GateVerdict.ENVIRONMENT: "the machine was in no state to answer",
}
_GOVERNORS = {"performance", "unknown"}
_BUSY_PERCENT = 20.0  # of a core, by other processes


def clean(text: str, most: int = 300) -> str:
    """Make text of unknown origin one printable line of at most `most` characters."""
    kept = "".join(" " if unicodedata.category(sign) in _HIDDEN else sign for sign in text)
    line = " ".join(kept.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def name(one: Comparison) -> str:
    """Name what was compared; it may come from a stranger's file name."""
    return clean(one.name, 120)


def engine(one: Comparison) -> str:
    """Say how it was compiled and run."""
    threads = "1 thread" if one.threads == 1 else f"{one.threads} threads"
    return f"{clean(one.runtime, 40)} {one.precision.value}, {threads}"


def gravest_first(gate: Gate) -> tuple[Comparison, ...]:
    """Order the comparisons by verdict, then by how slow the candidate is."""
    return tuple(
        sorted(
            gate.comparisons,
            key=lambda one: (_GRAVITY[one.verdict], -one.ratio.estimate if one.ratio else 0.0),
        )
    )


def headline(gate: Gate) -> str:
    """Say in one line what the whole call found."""
    one, count = gate.decisive, len(gate.comparisons)
    shared = sum(other.verdict is gate.verdict for other in gate.comparisons)
    within = f" ({shared} of {count} comparisons)" if count > 1 else ""
    why = "" if _latency_decided(one) else f"{clean(one.reasons[0])}; "
    return f"{_MEANING[gate.verdict]}{within}: {name(one)}, {why}{sentence(one)}"


def _latency_decided(one: Comparison) -> bool:
    """Say whether the ratio explains the verdict; a FAIL may come from size, memory or accuracy."""
    slower = one.ratio is not None and one.ratio.low > 1 + one.margin and one.against != "baseline"
    return slower or one.verdict is not GateVerdict.FAIL or not one.reasons


def sentence(one: Comparison) -> str:
    """Say what was measured of a comparison, in one line."""
    if one.against == "baseline":
        return _absolute(one)
    took = f"{one.pairs} {'pair' if one.pairs == 1 else 'pairs'}, {seconds(one.seconds)}"
    if one.ratio is None:
        return f"nothing could be compared; {took}"
    against = "base" if one.against == "base" else f"the {clean(one.against, 40)}"
    return (
        f"candidate is {times(one.ratio.estimate)} {against} {interval(one.ratio)} "
        f"at {confidence(one.ratio)}, margin {share(one.margin)}, {took}"
    )


def _absolute(one: Comparison) -> str:
    took = f"{one.candidate.samples} inferences, {seconds(one.seconds)}"
    if one.ratio is None:
        return f"nothing could be compared with the baseline; {took}"
    sure = f"{interval(one.ratio)} at {confidence(one.ratio)}"
    return f"candidate's p50 is {times(one.ratio.estimate)} the baseline's {sure}, {took}"


def mends(one: Comparison, rules: GateRules) -> tuple[str, ...]:
    """Say what would bring an answer, where there is none."""
    if one.verdict is GateVerdict.INCONCLUSIVE:
        return (_more_evidence(one, rules),)
    if one.verdict is GateVerdict.ENVIRONMENT:
        return _healthier(one)
    return ()


def reasons(one: Comparison) -> tuple[str, ...]:
    """Give the reasons as printable lines, and what follows from an improvement."""
    kept = "make the candidate the new base, so that what was gained is not lost unnoticed"
    return (*map(clean, one.reasons), *((kept,) if one.verdict is GateVerdict.IMPROVED else ()))


def _more_evidence(one: Comparison, rules: GateRules) -> str:
    if one.against == "baseline":
        return "compare with the other file instead, edgekd check BASE CANDIDATE: pairs need no quiet machine"
    if one.pairs < rules.looks[-1]:
        return (
            f"give it more time (--max-minutes {2 * rules.max_minutes:g}): "
            f"{one.pairs} of at most {rules.looks[-1]} pairs were taken"
        )
    clock = ", or --clock cpu" if one.threads == 1 and one.clock.value == "wall" else ""
    return f"more pairs would not do: ask with a wider --margin{clock}, or on a quieter machine"


def _healthier(one: Comparison) -> tuple[str, ...]:
    load, software = one.conditions.load, one.conditions.software
    found = []
    if one.dropped:
        found.append("keep the device cool and its clocks fixed: pairs were lost")
    if load.others_percent > _BUSY_PERCENT:
        found.append(f"stop what else runs here: others used {load.others_percent:.0f} % of a core")
    if software.governor not in _GOVERNORS:
        found.append(f"set the governor to performance: it is {clean(software.governor, 40)}")
    return (*found, "check again afterwards: nothing was concluded about the candidate")


def sparkline(one: Comparison) -> str:
    """Draw the pairs' ratios in run order, from `reach` below 1 to `reach` above it."""
    if not one.log_ratios:
        return ""
    reach = _reach(one)
    steps = [round((value + reach) / (2 * reach) * (len(_BARS) - 1)) for value in one.log_ratios]
    return "".join(_BARS[step] for step in steps)


def legend(one: Comparison) -> str:
    """Say what the full height of the sparkline is."""
    return f"+-{share(math.expm1(_reach(one)))}"


def _reach(one: Comparison) -> float:
    # At least the margin, so that noise within it looks like what it is.
    return max(math.log1p(one.margin), *(abs(value) for value in one.log_ratios))


def reference(one: Comparison) -> str:
    """Say what the reference model measured against itself."""
    if one.reference is None:
        return "not measured"
    return f"{times(one.reference.estimate)} itself {interval(one.reference)}"


def times(value: float | None) -> str:
    """Write a ratio, 1.049x."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.3f}x"


def interval(ratio: Ratio) -> str:
    """Write a ratio's bounds, [1.041, 1.058]."""
    if not math.isfinite(ratio.high):
        return "[too few pairs for bounds]"
    return f"[{ratio.low:.3f}, {ratio.high:.3f}]"


def confidence(ratio: Ratio) -> str:
    """Write with how many nines each bound holds: never 100 %."""
    for digits in range(1, 8):
        text = f"{100 * ratio.confidence:.{digits}f}"
        if not text.startswith("100"):
            return f"{text.rstrip('0').rstrip('.')} %"
    return "100 %"


def share(value: float) -> str:
    """Write a share, 3 %."""
    return f"{100 * value:.3g} %"


def seconds(value: float) -> str:
    """Write a duration, 14 s or 3 min 05 s."""
    if value < 100:  # noqa: PLR2004 - from there on, minutes read better
        return f"{value:.0f} s"
    return f"{int(value) // 60} min {int(value) % 60:02d} s"


def ms(value: float | None) -> str:
    """Write a time, without its unit."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.3f}" if value < 100 else f"{value:.1f}"  # noqa: PLR2004 - four digits are enough


def size(arm: Arm) -> str:
    """Write the size of an arm's files."""
    return f"{arm.size_bytes / 1e6:.2f} MB" if arm.size_bytes >= 1e4 else f"{arm.size_bytes} B"  # noqa: PLR2004


def memory(arm: Arm) -> str:
    """Write what a fresh process grew by."""
    return f"{arm.memory_mib:.1f} MiB" if math.isfinite(arm.memory_mib) else DASH


def accuracy(arm: Arm) -> str:
    """Write an accuracy, where there is one."""
    return DASH if arm.accuracy is None else f"{100 * arm.accuracy:.2f} %"


def accuracy_change(one: Comparison) -> str:
    """Write what the candidate gained, in points."""
    if one.base.accuracy is None or one.candidate.accuracy is None:
        return DASH
    return f"{100 * (one.candidate.accuracy - one.base.accuracy):+.2f} points"


def change(base: float, candidate: float) -> str:
    """Write what the candidate has more than the base, +4.9 %."""
    if not (math.isfinite(base) and math.isfinite(candidate)) or base <= 0:
        return DASH
    return f"{100 * (candidate / base - 1):+.1f} %"


def conditions(one: Comparison) -> tuple[tuple[str, str], ...]:
    """Name the circumstances of a comparison, one by one."""
    hardware, software, load = one.conditions.hardware, one.conditions.software, one.conditions.load
    runtimes = ", ".join(f"{name} {version}" for name, version in software.runtimes.items())
    heat = () if load.temperature_c is None else (("temperature", f"{load.temperature_c:.0f} °C"),)
    clock = () if load.clock_mhz is None else (("clock", f"{load.clock_mhz:.0f} MHz"),)
    rows = (
        ("processor", f"{hardware.processor} ({hardware.machine}), {hardware.cores} cores"),
        ("memory", f"{hardware.memory_mib / 1024:.1f} GiB"),
        ("system", f"{software.system} {software.kernel}, Python {software.python}"),
        ("runtimes", runtimes or "none known"),
        ("governor", software.governor),
        ("other processes", f"{load.others_percent:.0f} % of a core, load average {load.load_average:.2f}"),
        ("stolen time", f"{load.steal_percent:.1f} %, {load.involuntary_switches} involuntary switches"),
        *heat,
        *clock,
        (
            "protocol",
            f"version {one.protocol.version}, {one.protocol.blocks} turns of {one.protocol.samples}",
        ),
        ("fingerprint", one.conditions.fingerprint[:16]),
    )
    return tuple((name, clean(text)) for name, text in rows)
