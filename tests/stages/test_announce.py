from __future__ import annotations

import json
import math
import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.stages import announce
from edgekd.stages.announce import words
from edgekd.stages.announce.comment import code, escaped
from edgekd.values.gate import Comparison, Gate, GateRules, GateVerdict

HOSTILE = (
    "<script>alert(1)</script>|`x`\n::error::@everyone #12 \x1b[2J\u202e[a](http://e.io) www.e.io _x_\x00"
)


@pytest.fixture
def every(compared: Any, gated: Any, failed: Comparison, noisy: Comparison, sick: Comparison) -> Gate:
    improved = compared(ratio=0.9, verdict=GateVerdict.IMPROVED, name="small.onnx")
    return gated(compared(), failed, noisy, sick, improved, changes=("small.onnx: +6.1 % since Monday",))


def cases(text: str) -> list[ET.Element]:
    return list(ET.fromstring(text).iter("testcase"))  # noqa: S314 - our own


def test_each_verdict_has_its_junit_outcome(every: Gate) -> None:
    found = [[child.tag for child in case] for case in cases(announce.junit(every))]
    assert found == [
        ["system-out"],
        ["failure", "system-out"],
        ["skipped", "system-out"],
        ["error", "system-out"],
        ["system-out"],
    ]


def test_junit_counts_agree_with_its_cases(every: Gate) -> None:
    suite = next(ET.fromstring(announce.junit(every)).iter("testsuite"))  # noqa: S314 - our own
    counted = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counted == {"tests": "5", "failures": "1", "errors": "1", "skipped": "1"}


def test_junit_holds_to_the_elements_and_attributes_that_jenkins_knows(every: Gate) -> None:
    """As its junit-10.xsd allows them."""
    allowed = {
        "testsuites": {"name", "time", "tests", "failures", "errors"},
        "testsuite": {"name", "tests", "failures", "errors", "time", "skipped"},
        "testcase": {"name", "time", "classname"},
        "failure": {"type", "message"},
        "error": {"type", "message"},
        "skipped": {"type", "message"},
        "system-out": set(),
    }
    for element in ET.fromstring(announce.junit(every)).iter():  # noqa: S314 - our own
        assert set(element.attrib) <= allowed[element.tag]
        assert re.fullmatch(r"[0-9]+\.[0-9]*", element.get("time", "1.0"))


def test_a_failure_says_the_numbers_in_its_text_where_gitlab_reads_them(
    gated: Any, failed: Comparison
) -> None:
    failure = cases(announce.junit(gated(failed)))[0].find("failure")
    assert failure is not None
    assert "1.049x base [1.046, 1.052]" in (failure.text or "")


def test_a_skipped_case_says_what_would_bring_an_answer(gated: Any, noisy: Comparison) -> None:
    skipped = cases(announce.junit(gated(noisy)))[0].find("skipped")
    assert skipped is not None
    assert "a margin of 8%" in (skipped.text or "")
    assert "--margin" in (skipped.text or "")


@given(name=st.text(max_size=200))
def test_any_name_gives_xml_that_can_be_read(name: str) -> None:
    element = ET.Element("testcase", {"name": words.clean(name)})
    found = ET.fromstring(ET.tostring(element, encoding="unicode"))  # noqa: S314 - our own
    assert found.get("name") == words.clean(name)


def test_a_hostile_name_is_one_line_of_text_in_every_output(compared: Any, gated: Any) -> None:
    one = compared(name=HOSTILE, verdict=GateVerdict.FAIL, reasons=(HOSTILE,))
    gate = gated(one)
    (case,) = cases(announce.junit(gate))
    assert case.get("name", "").startswith("<script>alert(1)</script>|`x` ::error::")
    (annotation,) = announce.annotations(gate)
    assert annotation.startswith("::error title=")
    assert "\n" not in annotation
    assert annotation.count("::error") == 2  # the command, and as text in its data
    assert "::error" not in annotation[len("::error title=") : annotation.index("::", len("::error title="))]
    for text in (annotation, announce.markdown(gate), announce.junit(gate)):
        assert not {sign for sign in text if unicodedata.category(sign) == "Cc"} - {"\n"}
        assert "\u202e" not in text


def test_the_comment_begins_with_its_marker(every: Gate) -> None:
    assert announce.markdown(every).startswith("<!-- edgekd-latency-gate -->\n")
    assert announce.markdown(every).count(announce.MARKER) == 1


def test_a_name_cannot_forge_the_marker(compared: Any, gated: Any) -> None:
    text = announce.markdown(gated(compared(name=announce.MARKER, reasons=(announce.MARKER,))))
    outside_code = re.sub(r"`[^`]*`", "", text)
    assert outside_code.count("<!--") == 1


def test_the_table_has_a_row_a_comparison_the_gravest_first(every: Gate) -> None:
    rows = [line for line in announce.markdown(every).splitlines() if line.startswith("| `")]
    verdicts = [re.search(r"\*\*(\w+)\*\*", row) for row in rows]
    found = [match[1] for match in verdicts if match]
    assert found == ["FAIL", "ENVIRONMENT", "INCONCLUSIVE", "IMPROVED", "PASS"]
    assert "2.310 → 2.423 ms | 1.049x \\[1.046, 1.052\\] | 3 %" in rows[0]


@given(text=st.text(max_size=300))
def test_a_quoted_name_stays_within_its_cell_and_its_span(text: str) -> None:
    quoted = code(text)
    assert quoted.count("`") == 2
    assert "|" not in quoted
    assert len(quoted.splitlines()) == 1
    assert len(quoted) <= 122


@given(text=st.text(alphabet="<>&@#|`*_[]()!~$\\\n:/.w1ab ", max_size=80))
def test_escaped_text_has_no_live_markup(text: str) -> None:
    found = escaped(text)
    assert not re.search(r"[<>\n]", found)
    assert not re.search(r"@\w", found)
    assert "://" not in found
    assert not re.search(r"#\d", found)
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]|~!$]", re.sub(r"\\[^\\]", "", found))


def test_the_comment_fits_github_however_many_models_there_are(compared: Any, gated: Any) -> None:
    reasons = ("&" * 400, *(f"{'reason ' * 60}{number}" for number in range(50)))
    many = [
        compared(
            name=f"{'m' * 200}{number}", verdict=GateVerdict.FAIL, reasons=reasons, pairs=60, runtime="&" * 40
        )
        for number in range(80)
    ]
    text = announce.markdown(gated(*many, changes=("&" * 400,) * 20), command="edgekd check " + "x" * 9000)
    assert len(text) < 65_536
    assert "more in `gate.json`" in text


def test_a_command_cannot_leave_its_fence(gated: Any, compared: Any) -> None:
    text = announce.markdown(gated(compared()), command="edgekd check 'a```\n````\n# title'")
    fence = next(line for line in text.splitlines() if line.endswith("sh"))[:-2]
    inside = text.split(f"{fence}sh\n")[1].split(f"\n{fence}\n")[0]
    assert len(fence) == 5
    assert inside == "edgekd check 'a``` ```` # title'"


def test_a_breach_beside_latency_is_what_the_headline_says(compared: Any, gated: Any) -> None:
    grown = compared(verdict=GateVerdict.FAIL, reasons=("the file grew by 40.0%, more than 10%",))
    assert "the file grew by 40.0%" in words.headline(gated(grown))


def test_a_slowdown_is_what_the_headline_says_of_itself(gated: Any, failed: Comparison) -> None:
    remark = replace(failed, reasons=("in some pairs an arm waited",))
    assert words.headline(gated(remark)) == (
        "regression: mobilenet.onnx, candidate is 1.049x base [1.046, 1.052] at 99.8 %, margin 3 %, 15 pairs, 14 s"
    )


def test_unfinished_pairs_are_mended_by_time_and_finished_ones_by_the_question(noisy: Comparison) -> None:
    assert "--max-minutes 20" in words.mends(replace(noisy, pairs=15), GateRules())[0]
    assert "--max-minutes" not in words.mends(noisy, GateRules())[0]
    assert "--clock cpu" in words.mends(noisy, GateRules())[0]
    assert "--clock" not in words.mends(replace(noisy, threads=2), GateRules())[0]


def test_a_sick_machine_is_told_what_ails_it(sick: Comparison) -> None:
    told = " ".join(words.mends(sick, GateRules()))
    assert "others used 88 % of a core" in told
    assert "it is powersave" in told
    assert "cool" in told


def test_a_baseline_speaks_of_inferences_and_never_of_pairs(compared: Any, gated: Any) -> None:
    reasons = ("p99 is at least 3.100 ms, limit 3.000 ms",)
    one = compared(against="baseline", pairs=0, verdict=GateVerdict.FAIL, reasons=reasons)
    headline = words.headline(gated(one))
    assert "p99 is at least 3.100 ms" in headline
    assert "4800 inferences" in headline
    assert "pairs" not in headline


def test_the_sparkline_shows_noise_within_the_margin_as_small(compared: Any) -> None:
    quiet = compared(ratio=1.0, scatter=0.0005)
    assert set(words.sparkline(quiet)) <= {"▄", "▅"}
    slow = replace(quiet, log_ratios=(0.0, 0.5, -0.5))
    assert words.sparkline(slow)[1:] == "█▁"


def test_there_are_at_most_ten_annotations_and_the_last_says_so(
    compared: Any, gated: Any, failed: Comparison
) -> None:
    told = announce.annotations(gated(*[failed] * 14, compared()))
    assert len(told) == 10
    assert all(line.startswith("::error ") for line in told[:9])
    assert "5 more" in told[9]


def test_levels_of_annotations_follow_the_verdicts(every: Gate) -> None:
    levels = [line.split(" ")[0] for line in announce.annotations(every)]
    assert levels == ["::error", "::warning", "::warning", "::notice", "::notice"]


def test_a_pass_is_one_notice(compared: Any, gated: Any) -> None:
    (notice,) = announce.annotations(gated(compared(), compared()))
    assert notice.startswith("::notice title=latency PASS::no regression (2 of 2 comparisons)")


def test_annotations_are_escaped_as_github_asks(compared: Any, gated: Any) -> None:
    (told,) = announce.annotations(
        gated(compared(name="a,b:c%", verdict=GateVerdict.FAIL, reasons=("50% of x, y: z",)))
    )
    title, data = told.removeprefix("::error title=").split("::", 1)
    assert title == "latency FAIL%3A a%2Cb%3Ac%25"
    assert "50%25 of x, y: z" in data
    assert "%0A" in data


def test_json_has_the_decisive_comparison_on_top(every: Gate, failed: Comparison) -> None:
    found = announce.gate_json(every)
    assert found["verdict"] == "FAIL"
    assert found["name"] == failed.name
    assert found["ratio"] == pytest.approx(1.049)
    assert found["ratio_low"] < found["ratio"] < found["ratio_high"]
    wanted = {
        "margin",
        "pairs",
        "seconds",
        "base",
        "candidate",
        "conditions",
        "schema_version",
        "rules",
        "changes",
    }
    assert wanted <= set(found)
    assert found["candidate"]["path"] == "new/mobilenet.onnx"
    assert [one["verdict"] for one in found["comparisons"]] == [
        one.verdict.value for one in every.comparisons
    ]


def test_nothing_that_is_not_finite_reaches_json(compared: Any, gated: Any) -> None:
    one = compared(pairs=3)
    open_ended = replace(one.ratio, low=0.0, high=math.inf)
    arm = replace(one.candidate, p50_ms=math.nan, memory_mib=math.nan)
    gate = gated(replace(one, ratio=open_ended, candidate=arm))
    found = json.loads(json.dumps(announce.gate_json(gate), allow_nan=False))
    assert found["ratio_high"] is None
    assert found["candidate"]["p50_ms"] is None
    for text in (announce.benchmark_json(gate), announce.bencher_json(gate)):
        assert "NaN" not in text
        assert "Infinity" not in text
    assert "too few pairs for bounds" in announce.markdown(gate)


def test_where_nothing_was_compared_the_ratio_is_null(gated: Any, sick: Comparison) -> None:
    found = announce.gate_json(gated(sick))
    assert (found["ratio"], found["ratio_low"], found["ratio_high"]) == (None, None, None)


def test_github_action_benchmark_gets_what_it_reads(every: Gate) -> None:
    rows = json.loads(announce.benchmark_json(every))
    assert all({"name", "unit", "value"} <= set(row) for row in rows)
    assert all(isinstance(row["value"], float) for row in rows)
    assert len({row["name"] for row in rows if "small" in row["name"]}) == 2
    (ratio,) = [row for row in rows if row["name"].startswith("small.onnx") and row["name"].endswith("ratio")]
    assert ratio["range"] == "[0.897, 0.903]"
    assert sum("tagger.onnx" in row["name"] for row in rows) == 1  # a p50, and no ratio


def test_bencher_gets_nanoseconds_with_bounds_around_them(gated: Any, failed: Comparison) -> None:
    ((name, measures),) = json.loads(announce.bencher_json(gated(failed))).items()
    assert name == "mobilenet.onnx (onnxruntime int8, 1 thread)"
    latency = measures["latency"]
    assert latency["value"] == pytest.approx(failed.candidate.p50_ms * 1e6)
    assert latency["lower_value"] < latency["value"] < latency["upper_value"]
    assert measures["latency-ratio"]["value"] == pytest.approx(1.049)


def test_every_output_is_written_and_the_summary_appended_to(every: Gate, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    written = announce.announce(tmp_path / "out", every, command="edgekd check a b", summary=summary)
    assert set(written) == {
        "gate.json",
        "junit.xml",
        "comment.md",
        "benchmark.json",
        "bencher.json",
        "gate.html",
    }
    assert all(path.read_text(encoding="utf-8").strip() for path in written.values())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(written)
    assert json.loads(written["gate.json"].read_text())["verdict"] == "FAIL"
    assert summary.read_text().startswith("before\n<!-- edgekd-latency-gate -->")
