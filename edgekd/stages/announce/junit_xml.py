"""The gate as JUnit XML, as Jenkins, GitLab and most others read it."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from edgekd.stages.announce import words
from edgekd.values.gate import Comparison, Gate, GateRules, GateVerdict

_PROLOGUE = '<?xml version="1.0" encoding="UTF-8"?>'
_OUTCOMES = {
    GateVerdict.FAIL: "failure",
    GateVerdict.INCONCLUSIVE: "skipped",
    GateVerdict.ENVIRONMENT: "error",
}


def junit(gate: Gate) -> str:
    """Write one test case a comparison; what could not be answered is skipped or an error, never a failure."""
    counts = {
        "tests": len(gate.comparisons),
        "failures": sum(one.verdict is GateVerdict.FAIL for one in gate.comparisons),
        "errors": sum(one.verdict is GateVerdict.ENVIRONMENT for one in gate.comparisons),
    }
    totals = {name: str(count) for name, count in counts.items()} | {"time": f"{gate.seconds:.3f}"}
    root = Element("testsuites", {"name": "edgekd check", **totals})
    skipped = sum(one.verdict is GateVerdict.INCONCLUSIVE for one in gate.comparisons)
    suite = SubElement(root, "testsuite", {"name": "edgekd check", **totals, "skipped": str(skipped)})
    for one in gate.comparisons:
        _case(suite, one, gate.rules)
    indent(root)
    return f"{_PROLOGUE}\n{tostring(root, encoding='unicode')}\n"


def _case(suite: Element, one: Comparison, rules: GateRules) -> None:
    named = {
        "name": f"{words.name(one)} ({words.engine(one)}, against {words.clean(one.against, 40)})",
        "classname": f"edgekd.check.{words.clean(one.runtime, 40)}",
        "time": f"{one.seconds:.3f}",
    }
    case = SubElement(suite, "testcase", named)
    kind = _OUTCOMES.get(one.verdict)
    if kind is not None:
        why = [*words.reasons(one)] or [words.sentence(one)]
        told = {"message": why[0]} if kind == "skipped" else {"message": why[0], "type": one.verdict.value}
        # GitLab shows an element's text and nothing of its attributes.
        SubElement(case, kind, told).text = "\n".join([words.sentence(one), *why, *words.mends(one, rules)])
    SubElement(case, "system-out").text = "\n".join(_numbers(one))


def _numbers(one: Comparison) -> list[str]:
    base, candidate = one.base, one.candidate
    return [
        f"verdict    {one.verdict.value}",
        f"latency    {words.sentence(one)}",
        f"p50 ms     {words.ms(base.p50_ms)} -> {words.ms(candidate.p50_ms)}",
        f"p99 ms     {words.ms(base.p99_ms)} -> {words.ms(candidate.p99_ms)}",
        f"size       {words.size(base)} -> {words.size(candidate)}",
        f"memory     {words.memory(base)} -> {words.memory(candidate)}",
        f"accuracy   {words.accuracy(base)} -> {words.accuracy(candidate)}",
        f"reference  {words.reference(one)}",
        f"pairs      {words.sparkline(one) or 'none'}",
        *(f"note       {reason}" for reason in words.reasons(one)),
        *(f"dropped    {words.clean(reason)}" for reason in one.dropped),
    ]
