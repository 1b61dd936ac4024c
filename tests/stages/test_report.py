from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgekd.stages.report import ReportContent, report
from edgekd.values.bundle import Bundle
from edgekd.values.model import Precision
from edgekd.values.trial import History, Proposal, Trial, Verdict

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}$x_1$"


class Page(HTMLParser):
    """Every element, every attribute and the visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
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
def content(made: Any, made_bundle: Bundle) -> ReportContent:
    spec, manifest = made.content.spec, made_bundle.manifest
    latency = made.content.shipped[0].latency
    proposal = Proposal(spec=spec, runtime="openvino", precision=Precision.FP32)
    slow = replace(proposal, runtime="onnxruntime")
    trials = (
        Trial(proposal=slow, verdict=Verdict.MEASURED, latency=latency),
        Trial(
            proposal=slow, verdict=Verdict.TOO_SLOW, latency=latency, why="p99 <= 9.000 ms, limit 1.000 ms"
        ),
        Trial(proposal=slow, verdict=Verdict.UNBUILDABLE, why="no implementation of Frobnicate"),
        Trial(
            proposal=proposal, verdict=Verdict.PROMISING, latency=latency, accuracy=0.8, epochs=3, seconds=9
        ),
        Trial(
            proposal=slow, verdict=Verdict.INACCURATE, latency=latency, accuracy=0.9, epochs=20, seconds=99
        ),
        Trial(proposal=proposal, verdict=Verdict.FITS, latency=latency, accuracy=0.97, epochs=20, seconds=99),
    )
    return ReportContent(
        name="small",
        history=History(trials=trials),
        limits_ms={"p99": 1.0},
        command="edgekd run small.toml",
        manifest=manifest,
        latency=latency,
        teacher_latency=latency,
        teacher_accuracy=0.98,
        accuracy_floor=0.96,
    )


def page_of(content: ReportContent, folder: Path) -> Page:
    return Page(report(folder / "report.html", content).read_text(encoding="utf-8"))


def test_the_banner_says_what_was_accepted_and_by_how_much(content: ReportContent, tmp_path: Path):
    text = page_of(content, tmp_path).text
    assert "A student was accepted: openvino/fp32" in text
    assert "p99 is at most 0.207 ms with 95% confidence; the budget is 1.000 ms at p99" in text
    assert "97.00%, 1.00 points below the teacher's" in text


def test_the_pictures_show_the_budget_the_teacher_and_the_accepted_trial(
    content: ReportContent, tmp_path: Path
):
    text = page_of(content, tmp_path).text
    for words in (
        "p99 limit 1 ms",
        "teacher",
        "6, accepted",
        "lowest accuracy allowed",
        "launch 2",
        "p50 0.204",
    ):
        assert words in text


def test_every_trial_has_a_row_with_its_reason(content: ReportContent, tmp_path: Path):
    page = page_of(content, tmp_path)
    assert [name for name in page.ids if name.startswith("trial-")] == [f"trial-{n}" for n in range(1, 7)]
    for trial in content.history.trials:
        assert trial.why in page.text


def test_every_link_leads_to_a_row_of_the_page_itself(content: ReportContent, tmp_path: Path):
    page = page_of(content, tmp_path)
    links = [
        value for name, value in page.attributes if name in {"href", "xlink:href", "src", "action", "data"}
    ]
    assert any(link.startswith("#trial-") for link in links)
    assert {link.removeprefix("#") for link in links} <= set(page.ids)


def test_nothing_is_loaded_and_nothing_can_run(content: ReportContent, tmp_path: Path):
    page = page_of(content, tmp_path)
    forbidden = {"script", "iframe", "object", "embed", "link", "img", "form", "base", "foreignobject"}
    assert forbidden.isdisjoint(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not [
        value
        for name, value in page.attributes
        if re.search(r"//|javascript:", value) and "xmlns" not in name
    ]
    assert any("default-src 'none'" in value for _, value in page.attributes)


def test_hostile_names_are_shown_and_do_nothing(content: ReportContent, tmp_path: Path):
    assert content.manifest is not None
    plain = page_of(content, tmp_path)
    spec = replace(content.manifest.spec, family=HOSTILE)
    trials = tuple(
        replace(trial, why=HOSTILE, proposal=replace(trial.proposal, spec=spec, runtime=HOSTILE))
        for trial in content.history.trials
    )
    accepted = replace(content.manifest.accepted, runtime=HOSTILE, files=(HOSTILE,))
    accuracy = replace(content.manifest.accuracy, metric=HOSTILE)
    manifest = replace(
        content.manifest,
        name=HOSTILE,
        spec=spec,
        deployments=(accepted,),
        tools={HOSTILE: HOSTILE},
        accuracy=accuracy,
    )
    hostile = replace(
        content,
        name=HOSTILE,
        command=HOSTILE,
        metric=HOSTILE,
        manifest=manifest,
        history=History(trials=trials),
    )
    page = page_of(hostile, tmp_path)
    assert set(page.tags) == set(plain.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) > 8


def test_a_refusal_says_what_failed_and_what_would_relax_it(content: ReportContent, tmp_path: Path):
    trials = tuple(trial for trial in content.history.trials if trial.verdict is not Verdict.FITS)
    refused = replace(
        content,
        manifest=None,
        latency=None,
        teacher_latency=None,
        history=History(trials=trials),
        refusal="no student is fast enough: the fastest is 1.21 times the limit",
        relaxation="write latency_ms = { p99 = 1.25 }",
    )
    page = page_of(refused, tmp_path)
    assert (
        "No student was accepted No student is fast enough: the fastest is 1.21 times the limit." in page.text
    )
    assert "What would relax it: write latency_ms = { p99 = 1.25 }" in page.text
    assert "A student was accepted" not in page.text
    assert "trial-5" in page.ids


@pytest.mark.parametrize("kept", [(), (Verdict.UNBUILDABLE,), (Verdict.MEASURED,), (Verdict.PROMISING,)])
@pytest.mark.parametrize("limits_ms", [{}, {"p50": 0.5, "p99": 1.0}])
def test_a_page_comes_of_whatever_little_happened(
    content: ReportContent, tmp_path: Path, kept: tuple[Verdict, ...], limits_ms: dict[str, float]
):
    history = History(trials=content.history.with_verdict(*kept))
    bare = ReportContent(
        name="bare", history=history, limits_ms=limits_ms, command="", refusal="nothing fits"
    )
    page = page_of(bare, tmp_path)
    assert "No student was accepted Nothing fits." in page.text
    assert page.open == []


def test_the_same_content_gives_the_same_bytes(content: ReportContent, tmp_path: Path):
    one, other = (report(tmp_path / name, content).read_bytes() for name in ("one.html", "other.html"))
    assert one == other


def test_a_noisy_measurement_is_called_so(content: ReportContent, tmp_path: Path):
    from edgekd.values.conditions import Trust, TrustVerdict

    assert content.manifest is not None
    noisy = Trust(verdict=TrustVerdict.NOISY, reasons=("others used 40 % of a core",))
    accepted = content.manifest.accepted
    accepted = replace(accepted, latency=replace(accepted.latency, trust=noisy))
    manifest = replace(content.manifest, deployments=(accepted,))
    assert (
        "Trust: noisy (others used 40 % of a core)"
        in page_of(replace(content, manifest=manifest), tmp_path).text
    )
