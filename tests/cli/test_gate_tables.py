from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from edgekd.cli import gate_tables
from edgekd.timing.conditions import conditions
from edgekd.values.conditions import Load
from edgekd.values.gate import Arm, Clock, Comparison, Gate, GateRules, GateVerdict, Ratio
from edgekd.values.latency import Protocol
from edgekd.values.model import Precision


@pytest.fixture(scope="module")
def passed() -> Comparison:
    arm = Arm(
        path="a.onnx",
        sha256="a" * 64,
        p50_ms=2.31,
        p95_ms=2.5,
        p99_ms=2.9,
        cpu_p50_ms=2.3,
        samples=4800,
        size_bytes=13_964_571,
        memory_mib=41.3,
        open_ms=182.0,
    )
    busy = Load(load_average=2.0, others_percent=150.0, steal_percent=0.0, involuntary_switches=9)
    return Comparison(
        name="mobilenet.onnx",
        against="base",
        runtime="onnxruntime",
        precision=Precision.INT8,
        threads=1,
        verdict=GateVerdict.PASS,
        reasons=(),
        clock=Clock.WALL,
        ratio=Ratio(estimate=1.004, low=0.999, high=1.009, confidence=0.99),
        other_ratio=Ratio(estimate=1.003, low=1.001, high=1.005, confidence=0.99),
        margin=0.03,
        pairs=10,
        dropped=(),
        seconds=9.6,
        base=arm,
        candidate=replace(arm, path="b.onnx", accuracy=0.71),
        log_ratios=(0.004, 0.002, 0.006),
        p_fail=1e-3,
        reference=Ratio(estimate=1.001, low=0.99, high=1.01, confidence=0.99),
        protocol=Protocol(launches=1),
        conditions=conditions(busy),
    )


def shown(*comparisons: Comparison, **changed: Any) -> str:
    worst = next(verdict for verdict in GateVerdict if verdict in {one.verdict for one in comparisons})
    usual: dict[str, Any] = {"verdict": worst, "rules": GateRules(), "seconds": 10.0}
    out = io.StringIO()
    gate = Gate(comparisons=comparisons, **{**usual, **changed})
    Console(file=out, width=160, highlight=False).print(gate_tables.gate(gate))
    return out.getvalue()


def test_the_verdict_is_the_first_word(passed: Comparison) -> None:
    assert shown(passed).split()[0] == "PASS"
    failed = replace(passed, verdict=GateVerdict.FAIL)
    assert shown(failed, passed, verdict=GateVerdict.FAIL).split()[0] == "FAIL"


def test_the_ratio_is_one_sentence(passed: Comparison) -> None:
    slow = replace(
        passed,
        verdict=GateVerdict.FAIL,
        ratio=Ratio(estimate=1.049, low=1.041, high=1.058, confidence=0.99),
        pairs=15,
        seconds=14.2,
    )
    assert "candidate is 1.049x base [1.041, 1.058] at 99 %, margin 3 %, 15 pairs, 14 s" in shown(slow)


def test_it_reads_without_colour(passed: Comparison) -> None:
    assert "\x1b" not in shown(passed)


def test_several_comparisons_are_told_apart_the_gravest_first(passed: Comparison) -> None:
    slow = replace(passed, name="slow.onnx", verdict=GateVerdict.FAIL)
    text = shown(passed, slow, verdict=GateVerdict.FAIL)
    assert "1 of 2 comparisons" in text
    lines = text.splitlines()
    at = [n for n, line in enumerate(lines) if line.startswith(("FAIL         ", "PASS         "))]
    assert [lines[n].split()[1] for n in at] == ["slow.onnx", "mobilenet.onnx"]


def test_an_inconclusive_one_says_what_would_bring_an_answer(passed: Comparison) -> None:
    doubtful = replace(
        passed, verdict=GateVerdict.INCONCLUSIVE, reasons=("the time given ended after 10 pairs",)
    )
    text = shown(doubtful)
    assert "the time given ended after 10 pairs" in text
    assert "to mend it" in text
    assert "--max-minutes 20" in text


def test_an_unhealthy_machine_says_what_to_fix(passed: Comparison) -> None:
    sick = replace(passed, verdict=GateVerdict.ENVIRONMENT, ratio=None, log_ratios=(), pairs=0)
    text = shown(sick)
    assert "nothing could be compared" in text
    assert "others used 150 % of a core" in text


def test_both_arms_are_shown_and_what_is_unknown_is_a_dash(passed: Comparison) -> None:
    rows = [line.split() for line in shown(passed).splitlines()]
    base, candidate = (next(row for row in rows if row[:1] == [word]) for word in ("base", "candidate"))
    assert base[-1] == "\N{EN DASH}"
    assert candidate[-2:] == ["71.00", "%"]
    crashed = replace(passed, candidate=replace(passed.candidate, p50_ms=math.nan))
    assert "nan" not in shown(crashed)


def test_names_are_neither_markup_nor_control_sequences(passed: Comparison) -> None:
    text = shown(replace(passed, name="[red]x[/red]\x1b[2J", reasons=("[bold]y",)), changes=("[blink]z\x1b",))
    assert "[red]x[/red]" in text
    assert "[bold]y" in text
    assert "[blink]z" in text
    assert "\x1b" not in text


def test_changes_in_the_history_are_told(passed: Comparison) -> None:
    assert "history: x.onnx: +6.1%" in shown(passed, changes=("x.onnx: +6.1% since Monday",))
