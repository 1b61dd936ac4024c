from __future__ import annotations

import math
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from edgekd.stages.gate_page import page
from edgekd.stages.gate_plots import HEIGHT, WIDTH, ratio_plot, spread_plot
from edgekd.values.gate import Comparison, GateRules, GateVerdict, Ratio

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}\x1b[2J"


class Page(HTMLParser):
    """Every element, every attribute and the visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in {"meta", "link", "img", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"}.intersection(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def rules() -> GateRules:
    return GateRules()


def test_the_page_says_verdict_numbers_reasons_and_command(gated: Any, noisy: Comparison) -> None:
    text = Page(page(gated(noisy), command="edgekd check a.onnx b.onnx")).text
    for said in (
        "INCONCLUSIVE",
        "1.028x base [1.012, 1.044]",
        "a margin of 8% is one that they can answer for",
        "pair 7: candidate was throttled",
        "1.001x itself",
        "AMD EPYC 9B14",
        "edgekd check a.onnx b.onnx",
        "13.96 MB",
    ):
        assert said in text


def test_every_comparison_has_its_block(
    compared: Any, gated: Any, failed: Comparison, noisy: Comparison, sick: Comparison
) -> None:
    found = Page(page(gated(failed, noisy, sick, compared(name="tail.onnx")), command=""))
    links = {value for name, value in found.attributes if name == "href"}
    anchors = {f"#{value}" for name, value in found.attributes if name == "id"}
    assert links == anchors
    assert len(links) == 4
    assert found.tags.count("svg") == 7  # nothing could be compared in one, so it has no ratios to draw


def test_every_element_is_closed(gated: Any, failed: Comparison, noisy: Comparison) -> None:
    found = Page(page(gated(failed, noisy), command="x"))
    assert found.open == []


def test_the_page_loads_and_runs_nothing(gated: Any, failed: Comparison) -> None:
    found = Page(page(gated(failed), command="x"))
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(found.tags)
    assert not [value for name, value in found.attributes if name in {"src", "action"}]
    assert not [value for name, value in found.attributes if name == "href" and not value.startswith("#")]


def test_hostile_names_stay_text(compared: Any, gated: Any) -> None:
    one = compared(name=HOSTILE, reasons=(HOSTILE,), dropped=(HOSTILE,), runtime=HOSTILE, against=HOSTILE)
    one = replace(one, base=replace(one.base, path=HOSTILE))
    found = Page(page(gated(one, changes=(HOSTILE,)), command=HOSTILE))
    assert "script" not in found.tags
    assert "img" not in found.tags
    assert "{{ 7 * 7 }}" in found.text
    assert "\x1b" not in found.text


def test_the_same_gate_gives_the_same_bytes(gated: Any, failed: Comparison) -> None:
    assert page(gated(failed), command="x") == page(gated(failed), command="x")


def test_what_is_not_finite_is_a_dash_on_the_page(compared: Any, gated: Any) -> None:
    one = compared(pairs=2)
    ratio = replace(one.ratio, low=0.0, high=math.inf)
    arm = replace(one.candidate, p50_ms=math.nan)
    text = page(gated(replace(one, ratio=ratio, candidate=arm)), command="")
    assert "nan" not in Page(text).text
    assert "too few pairs for bounds" in text


def test_a_dot_for_each_pair_in_run_order(failed: Comparison, rules: GateRules) -> None:
    plot = ratio_plot(failed, rules)
    assert plot is not None
    assert len(plot.dots) == len(failed.log_ratios)
    assert all(left[0] < right[0] for left, right in pairwise(plot.dots))
    slowest = max(range(len(failed.log_ratios)), key=lambda at: failed.log_ratios[at])
    assert min(y for _, y in plot.dots) == plot.dots[slowest][1]  # up is slower


def test_everything_drawn_lies_within_the_picture(
    failed: Comparison, noisy: Comparison, compared: Any, rules: GateRules
) -> None:
    wild = replace(compared(), log_ratios=(0.0, 3.0, -2.0))
    for one in (failed, noisy, wild, compared(pairs=1)):
        ratios, spread = ratio_plot(one, rules), spread_plot(one)
        assert ratios is not None
        assert spread is not None
        points = [
            *ratios.dots,
            *(point for curve in spread.curves for point in (*curve.points, *curve.marks)),
        ]
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
        assert all(0 <= level.label_y <= HEIGHT for level in ratios.levels)
        assert 2 <= len(ratios.y_ticks) <= 9
        assert 2 <= len(spread.x_ticks) <= 9


def test_labels_of_levels_do_not_cover_each_other(compared: Any, rules: GateRules) -> None:
    for ratio in (1.0, 1.0001, 1.0299, 1.03, 1.2):
        plot = ratio_plot(compared(ratio=ratio), rules)
        assert plot is not None
        heights = [level.label_y for level in plot.levels]
        assert all(lower - upper >= 12.9 for upper, lower in pairwise(heights))


def test_the_band_is_where_the_bounds_are(failed: Comparison, rules: GateRules) -> None:
    plot = ratio_plot(failed, rules)
    assert plot is not None
    assert plot.band is not None
    (estimate,) = [level.y for level in plot.levels if level.kind == "estimate"]
    (margin,) = [level.y for level in plot.levels if level.kind == "margin"]
    assert plot.band[0] < estimate < plot.band[1] < margin


def test_without_bounds_there_is_no_band(compared: Any, rules: GateRules) -> None:
    one = compared(pairs=2)
    open_ended = Ratio(estimate=1.0, low=0.0, high=math.inf, confidence=0.99)
    plot = ratio_plot(replace(one, ratio=open_ended), rules)
    assert plot is not None
    assert plot.band is None


def test_without_pairs_there_is_no_ratio_to_draw(sick: Comparison, rules: GateRules) -> None:
    assert ratio_plot(sick, rules) is None


def test_without_quantiles_the_known_percentiles_are_drawn(failed: Comparison) -> None:
    plain = replace(
        failed,
        base=replace(failed.base, quantiles_ms=()),
        candidate=replace(failed.candidate, quantiles_ms=()),
    )
    plot = spread_plot(plain)
    assert plot is not None
    assert [len(curve.points) for curve in plot.curves] == [3, 3]


def test_the_banner_shows_the_verdicts_colour(compared: Any, gated: Any, failed: Comparison) -> None:
    assert '<section class="banner">' in page(gated(compared()), command="")
    assert '<section class="banner refused">' in page(gated(failed), command="")
    doubtful = compared(verdict=GateVerdict.INCONCLUSIVE)
    assert '<section class="banner doubtful">' in page(gated(doubtful), command="")
