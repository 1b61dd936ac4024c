from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.cli.options import (
    choices_from,
    overrides_with,
    precisions_from,
    shapes_from,
    target_from_options,
)
from edgekd.errors import ConfigError, DeviceError, UsageError
from edgekd.stages.configure import configure, job_digest, load_target
from edgekd.values.model import Precision

names = st.text(min_size=1, max_size=8)
shapes = st.lists(st.integers(1, 10**6), min_size=1, max_size=5).map(tuple)


@given(st.dictionaries(names, shapes, max_size=3))
def test_shapes_are_read_as_they_are_written(wanted: dict[str, tuple[int, ...]]) -> None:
    texts = [f"{name}={'x'.join(map(str, shape))}" for name, shape in wanted.items()]
    assert shapes_from(texts) == wanted


def test_a_name_may_hold_an_equals_sign_and_sizes_may_stand_with_commas() -> None:
    assert shapes_from(["a=b=1,3"]) == {"a=b": (1, 3)}
    assert shapes_from(None) == {}


@pytest.mark.parametrize(
    "text", ["images", "=1x3", "images=", "images=1x", "images=0x3", "images=-1", "images=1.5"]
)
def test_another_form_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        shapes_from([text], "--input")
    assert "--input images=1x3x224x224" in caught.value.mend


def test_an_input_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="'a' twice"):
        shapes_from(["a=1", "a=2"])


def test_choices_keep_their_order_and_come_once() -> None:
    assert choices_from("b, a,b", ("a", "b"), "--to") == ("b", "a")
    assert choices_from(None, ("a",), "--to") == ()
    assert precisions_from("int8,fp32") == (Precision.INT8, Precision.FP32)


def test_an_unknown_choice_suggests_the_known_one() -> None:
    with pytest.raises(UsageError) as caught:
        precisions_from("fp23")
    assert "--precision 'fp23'" in caught.value.what
    assert "did you mean 'fp32'?" in caught.value.mend


def test_target_and_wait_stand_for_overrides_that_win_over_others() -> None:
    assert overrides_with(None, None, 0.0, "") == []
    given = ["target.device=x", "search.trials=4"]
    assert overrides_with(given, "local", 90.0, "s.jsonl") == [
        *given,
        "target.device=local",
        "target.wait_s=90",
        "target.record=s.jsonl",
    ]
    assert overrides_with(None, None, 0.0, "", "25W") == ["target.tune=25W"]
    assert overrides_with(None, "cassette:a b.jsonl", 0.0, "") == ["target.device=cassette:a b.jsonl"]


def test_an_unknown_device_is_refused_before_anything_else_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(DeviceError, match="'far'"):
        overrides_with(None, "far", 0.0, "")
    with pytest.raises(DeviceError, match="'far'"):
        target_from_options(None, None, None, "far")


def test_how_a_board_is_tuned_is_part_of_the_target_and_of_what_a_result_is_of() -> None:
    assert target_from_options(None, None, None, tune="clocks").tune == "clocks"
    tuned, plain = (configure("digits", given, {}, None).job for given in (["target.tune=MAXN"], []))
    assert load_target(tuned, Path()).tune == "MAXN"
    assert job_digest(tuned) != job_digest(plain)
    for wrong in ("-q", "$(reboot)", "a\nb", "x" * 41):
        with pytest.raises(ConfigError, match="tune cannot be"):
            target_from_options(None, None, None, tune=wrong)


def test_how_long_to_wait_is_part_of_the_target_and_of_no_result() -> None:
    assert target_from_options(None, None, None, wait_s=5.0).wait_s == 5.0
    waiting, hasty = (configure("digits", [f"target.wait_s={s}"], {}, None).job for s in (60, 0))
    assert job_digest(waiting) == job_digest(hasty)
    with pytest.raises(ConfigError, match="wait_s must be at least 0"):
        configure("digits", ["target.wait_s=-1"], {}, None)
