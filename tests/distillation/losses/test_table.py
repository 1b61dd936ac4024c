from __future__ import annotations

import dataclasses

import pytest

from edgekd.distillation.knowledge import student_taps
from edgekd.distillation.losses import LOSSES, catalogue, knowledge_from, response, teacher_taps
from edgekd.errors import ConfigError
from edgekd.values.codec import decode, plain
from edgekd.values.job import DistillationSection, LossSection
from tests.distillation.examples import LABELS, draw


def section(losses: object, **others: object) -> DistillationSection:
    """Read a section as a job's TOML gives it."""
    return decode(DistillationSection, {"losses": losses, **others}, "distillation")


def test_a_job_names_losses_by_weight_or_by_a_table_of_settings():
    given = section(
        {"ce": 0.5, "at": {"student": "stages.2", "teacher": "layer3"}, "kd": {"temperature": 4.0}}
    )
    ce, at, kd = knowledge_from(given, classes=10)
    assert (ce.weight, at.weight, kd.weight) == (0.5, 1000.0, 1.0)
    assert (at.student, at.teacher) == (("stages.2",), ("layer3",))
    student, teacher = draw(1, 6, 5), draw(2, 6, 5)
    assert kd.loss(student, teacher, LABELS) == response.kd(student, teacher, LABELS, temperature=4.0)
    assert decode(DistillationSection, plain(given)) == given


def test_several_taps_pair_off():
    table = {"student": ["stages.0", "stages.1"], "teacher": ["layer1", "layer2"]}
    (at,) = knowledge_from(section({"at": table}), classes=10)
    assert student_taps((at,)) == ("stages.0", "stages.1")
    assert teacher_taps((at,)) == ("logits", "layer1", "layer2")
    with pytest.raises(ConfigError, match="pair off") as caught:
        knowledge_from(section({"at": {**table, "teacher": ["a", "b", "c"]}}), classes=10)
    assert "2 of the student, 3 of the teacher" in caught.value.cause


def test_one_tensor_of_the_teacher_serves_every_stage_of_the_student():
    (ofa,) = knowledge_from(section({"ofa": {"student": ["stages.0", "stages.1"]}}), classes=10)
    assert ofa.teacher == ("logits", "logits")


def test_the_section_s_temperature_is_of_every_loss_without_its_own():
    given = section({"kd": 1.0, "dkd": {"temperature": 2.0}, "mse": 1.0}, temperature=8.0)
    kd, dkd, _ = knowledge_from(given, classes=10)
    student, teacher = draw(1, 6, 5), draw(2, 6, 5)
    assert kd.loss(student, teacher, LABELS) == response.kd(student, teacher, LABELS, temperature=8.0)
    assert dkd.loss(student, teacher, LABELS) == response.dkd(student, teacher, LABELS, temperature=2.0)


@pytest.mark.parametrize("name", ["dist", "dkd", "lskd", "nkd"])
def test_u13_losses_without_a_gradient_on_two_classes_are_refused_before_any_step(name: str):
    with pytest.raises(ConfigError, match="at least 3 classes") as caught:
        knowledge_from(DistillationSection(losses={name: 1.0}), classes=2)
    assert caught.value.exit_code == 2
    assert "kd" in caught.value.mend


def test_one_class_has_no_softmax_to_match():
    with pytest.raises(ConfigError, match="at least 2 classes"):
        knowledge_from(DistillationSection(losses={"kd": 1.0}), classes=1)


@pytest.mark.parametrize(
    ("losses", "what", "mend"),
    [
        ({"dst": 1.0}, "no loss 'dst'", "did you mean 'dist'"),
        ({"kd": {"temprature": 2.0}}, "unknown key 'temprature'", "did you mean 'temperature'"),
        (
            {"kd": {"beta": 2.0}},
            "`kd` has no setting 'beta'",
            "known: confidence, student, teacher, temperature",
        ),
        ({"at": 1.0}, "what to tap in the student", "[distillation.losses.at]"),
        ({"at": {"student": "stages.0"}}, "what to tap in the teacher", "[distillation.losses.at]"),
        ({"rrd": 1.0}, "`rrd` does not serve classification", "use one of ce, kd"),
        ({"ail": 1.0}, "does not serve classification", "use one of ce, kd"),
        ({"kd": {"weight": -1.0}}, "weight of a loss must be at least 0", ""),
        ({"kd": {"temperature": 0.0}}, "temperature of a loss must be above 0", ""),
        ({"mgd": {"masked": 1.0}}, "masked of a loss must lie in [0, 1)", ""),
        ({"kd": "much"}, "must be a number", ""),
        ({"kd": {"weight": 0.0}}, "losses need weights", ""),
    ],
)
def test_what_cannot_work_is_refused_with_its_mend(losses: object, what: str, mend: str):
    with pytest.raises(ConfigError) as caught:
        knowledge_from(section(losses), classes=10)
    assert what in caught.value.what
    assert mend in caught.value.mend


def test_a_loss_that_does_not_serve_the_task_says_which_it_serves():
    with pytest.raises(ConfigError) as caught:
        knowledge_from(DistillationSection(losses={"rrd": 1.0}), classes=10)
    assert caught.value.cause == "it serves ranking"
    (rrd,) = knowledge_from(DistillationSection(losses={"rrd": 1.0}), classes=10, task="ranking")
    assert rrd.weight == 1.0


def test_a_loss_of_weight_nought_is_left_out():
    found = knowledge_from(DistillationSection(losses={"ce": 1.0, "dist": 0.0}), classes=2)
    assert [one.name for one in found] == ["ce"]


def test_only_what_the_losses_ask_for_is_kept_of_the_teacher():
    assert teacher_taps(knowledge_from(DistillationSection(), classes=10)) == ("logits",)
    recipe = DistillationSection(losses={"ce": 1.0, "pooled": 2.0})
    assert teacher_taps(knowledge_from(recipe, classes=10)) == ("logits", "pooled")


def test_the_catalogue_has_a_line_for_each_method_that_says_what_it_does():
    lines = catalogue()
    assert [line.name for line in lines] == list(LOSSES)
    assert all(line.about and line.source for line in lines)
    dkd = next(line for line in lines if line.name == "dkd")
    assert dkd.settings == {"temperature": 4.0, "alpha": 1.0, "beta": 2.0}
    assert (dkd.representation, dkd.source) == ("response", "Zhao et al. 2022")


def test_every_setting_of_a_method_for_classification_can_be_written_in_a_job():
    known = {field.name for field in dataclasses.fields(LossSection)}
    for name, method in LOSSES.items():
        if "classification" in method.tasks:
            assert set(method.settings) <= known, name


def test_every_setting_in_a_job_belongs_to_a_method():
    used = {key for method in LOSSES.values() for key in method.settings}
    assert {field.name for field in dataclasses.fields(LossSection)} <= used | {
        "weight", "student", "teacher", "warm_up", "confidence"
    }  # fmt: skip
