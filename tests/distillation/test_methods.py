"""Every method that a job can name, in the one training loop: it trains, goes on after a kill, and ships alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgekd.distillation import loop
from edgekd.distillation.fitting import try_losses
from edgekd.distillation.knowledge import BALANCE
from edgekd.distillation.loop import Course, Lesson, train
from edgekd.distillation.losses import LOSSES, knowledge_from
from edgekd.distillation.teachers import fingerprint_of, from_module
from edgekd.distillation.views import view_of
from edgekd.errors import ConfigError, TeacherError, UsageError
from edgekd.stages.distill import distill
from edgekd.stages.export import export
from edgekd.stages.label import label
from edgekd.students import build, space_for
from edgekd.values.job import DistillationSection, LossSection
from tests.distillation.small import SPEC, digits, net, recipe

METHODS = [name for name, method in LOSSES.items() if "classification" in method.tasks]
WITH_ADAPTERS = [name for name in METHODS if LOSSES[name].adapter]


def using(name: str, **others: object) -> DistillationSection:
    """Use a loss beside the labels, with taps where it needs them."""
    method = LOSSES[name]
    taps = {} if method.student else {"student": "body"}
    taps |= {} if method.teacher else {"teacher": ("logits", "other") if method.gathers else "map"}
    width = {"width": 8} if "width" in method.settings else {}
    # A weight that makes the loss a part of the whole: published ones are for other networks.
    weight = min(method.weight, 1.0)
    return recipe(losses={"ce": 1.0, name: LossSection(weight=weight, **taps, **width)}, **others)


def course(given: DistillationSection, epochs: int = 1, count: int = 128) -> Course:
    whole = digits()
    task = dataclasses.replace(whole, train=whole.train.spread(count))
    rng = np.random.default_rng(0)
    shapes = {"logits": (10,), "other": (10,), "pooled": (12,), "map": (6, 4, 4)}
    targets = {tap: rng.normal(size=(count, *shape)).astype(np.float16) for tap, shape in shapes.items()}
    return Course(
        task=task,
        knowledge=knowledge_from(given, classes=10),
        lesson=lambda epoch: Lesson(view=view_of(task, epoch, seed=0), targets=targets),
        recipe=given,
        resolution=8,
        epochs=epochs,
        seed=0,
    )


def stopped(course: Course) -> Course:
    """End the course after its first epoch, as a kill would."""
    asked = iter(range(100))

    def lesson(epoch: int) -> Lesson:
        if next(asked) > 0 and epoch > 0:
            raise KeyboardInterrupt
        return course.lesson(epoch)

    return dataclasses.replace(course, lesson=lesson)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_goes_on_after_a_kill_and_ships_the_student_alone(tmp_path: Path, name: str):
    given = using(name)
    whole = train(tmp_path / "whole", net(dropout=0.2), course(given, 2))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", net(dropout=0.2), stopped(course(given, 2)))
    again = train(tmp_path / "killed", net(dropout=0.2), course(given, 2))
    assert again.weights.sha256 == whole.weights.sha256
    assert again.losses == whole.losses
    assert load_file(whole.weights.path).keys() == net().state_dict().keys()


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", [*WITH_ADAPTERS, BALANCE])
def test_what_learns_beside_the_student_is_stepped_clipped_and_saved(tmp_path: Path, name: str):
    given = using("kd", balance="uncertainty") if name == BALANCE else using(name)
    one = course(given)
    state = loop._begin(tmp_path / "state.safetensors", net(), one, torch.device("cpu"))
    learning = [*state.adapters[name].parameters()]
    before = [weight.detach().clone() for weight in learning]
    clipped = {id(weight) for weight in state.trained()}
    if name not in {"infonce", "camkd"}:
        assert learning
    assert all(id(weight) in clipped for weight in learning)
    loop.run_epoch(state, one, torch.device("cpu"))
    moved = [not torch.equal(weight, old) for weight, old in zip(learning, before)]
    assert sum(moved) >= len(moved) - 2  # a bias ahead of a norm has no gradient
    state.save(tmp_path / "state.safetensors")
    kept = load_file(tmp_path / "state.safetensors")
    for key, value in state.adapters.state_dict().items():
        torch.testing.assert_close(kept[f"adapters/{key}"], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("balance", ["uncertainty", "magnitude"])
def test_a_balance_goes_on_after_a_kill(tmp_path: Path, balance: str):
    given = using("kd", balance=balance)
    whole = train(tmp_path / "whole", net(), course(given, 2))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", net(), stopped(course(given, 2)))
    assert train(tmp_path / "killed", net(), course(given, 2)).weights.sha256 == whole.weights.sha256
    plain = train(tmp_path / "plain", net(), course(using("kd"), 2))
    assert plain.weights.sha256 != whole.weights.sha256


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", ["fitnet", "crd", "vid"])
def test_u15_the_exported_file_holds_no_adapter(tmp_path: Path, name: str):
    given = using(name)
    if not LOSSES[name].student:
        section = dataclasses.replace(given.losses[name], student="stages.0")
        given = dataclasses.replace(given, losses={"ce": 1.0, name: section})
    module = build(SPEC, channels=1, classes=10)
    kept = train(tmp_path, module, course(given))
    model = export(tmp_path, SPEC, 1, 10, kept)
    held = sum(int(np.prod(one.dims)) for one in onnx.load(str(model.file.path)).graph.initializer)
    bare = train(tmp_path / "bare", build(SPEC, channels=1, classes=10), course(recipe(losses={"ce": 1.0})))
    alone = export(tmp_path / "bare", SPEC, 1, 10, bare)
    assert held == sum(int(np.prod(one.dims)) for one in onnx.load(str(alone.file.path)).graph.initializer)
    assert not any("adapter" in one.name for one in onnx.load(str(model.file.path)).graph.initializer)


@pytest.mark.usefixtures("plain")
def test_a_tap_that_the_student_lacks_is_refused_before_the_first_step(tmp_path: Path):
    given = recipe(losses={"at": LossSection(student="bdoy", teacher="map")})
    with pytest.raises(UsageError, match="did you mean 'body'"):
        train(tmp_path, net(), course(given))
    assert not (tmp_path / "state.safetensors").exists()


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", ["fitnet", "at", "vid", "ickd"])
def test_a_vector_against_a_map_is_refused_before_the_first_step(tmp_path: Path, name: str):
    given = recipe(losses={name: LossSection(student="pooled", teacher="map")})
    with pytest.raises(ConfigError, match=f"`{name}` cannot (match|compare)"):
        train(tmp_path, net(), course(given))
    assert not (tmp_path / "state.safetensors").exists()


@pytest.mark.usefixtures("plain")
def test_labels_of_other_losses_are_refused_before_the_first_step(tmp_path: Path):
    given = recipe(losses={"at": LossSection(student="body", teacher="deep")})
    with pytest.raises(UsageError, match="labels are of other losses") as caught:
        train(tmp_path, net(), course(given))
    assert "deep" in caught.value.cause


@pytest.mark.usefixtures("plain")
def test_a_teacher_of_other_classes_is_refused_before_the_first_step(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot compare") as caught:
        train(tmp_path, net(classes=7), course(recipe(losses={"mse": 1.0})))
    assert "logits (7,) with logits (10,)" in caught.value.cause


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("batch", [1, 127])
def test_a_lone_sample_does_not_spoil_a_training(tmp_path: Path, batch: int):
    losses = {"ce": 1.0, "rkd": 0.01, "srd": 0.01, "kd": 1.0, "dist": 1.0, "pkt": 1.0, "infonce": 0.1}
    given = recipe(losses=losses, batch=batch, learning_rate=0.01)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))  # no norm of its own
    kept = train(tmp_path, module, course(given, count=4 if batch == 1 else 128))
    assert all(torch.isfinite(value).all() for value in load_file(kept.weights.path).values())


@pytest.mark.parametrize(
    ("section", "error", "words"),
    [
        ({"student": "stages.0", "teacher": "boody"}, UsageError, "Net has no module 'boody'"),
        ({"student": "stges.0", "teacher": "body"}, UsageError, "Network has no module 'stges.0'"),
        ({"student": "pooled", "teacher": "body"}, ConfigError, "cannot compare"),
        ({"student": "stem.conv", "teacher": "body"}, UsageError, "overwritten"),
    ],
)
def test_a_wrong_tap_of_either_network_shows_before_any_work(
    section: dict[str, str], error: type[UsageError], words: str
):
    space = space_for(resolution=8, channels=1, classes=10)
    given = recipe(losses={"at": LossSection(**section)})
    with pytest.raises(error, match=words):
        try_losses(given, from_module(net(), digits()), digits(), space)


def test_trying_losses_changes_no_teacher_and_no_random_state():
    teacher, space = from_module(net(dropout=0.5), digits()), space_for(resolution=8, channels=1, classes=10)
    torch.manual_seed(3)
    before, drawn = fingerprint_of(teacher.module), torch.rand(1)
    torch.manual_seed(3)
    losses = {name: using(name).losses[name] for name in ("crd", "vid", "mgd")}
    losses |= {
        name: dataclasses.replace(losses[name], student="stages.0", teacher="body") for name in ("vid", "mgd")
    }
    try_losses(recipe(losses=losses), teacher, digits(), space)
    assert fingerprint_of(teacher.module) == before
    assert torch.equal(torch.rand(1), drawn)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", ["at", "crd", "fitnet"])
def test_u14_the_teacher_is_the_same_to_the_bit_after_it_has_taught(tmp_path: Path, name: str):
    task = course(using(name)).task
    teacher = from_module(net(dropout=0.5), task)
    taps = {} if LOSSES[name].student else {"student": "stages.0", "teacher": "body"}
    given = recipe(losses={name: LossSection(**taps)}, learning_rate=0.01)
    before = fingerprint_of(teacher.module)
    labels = (label(tmp_path / "labels", teacher, task, 0, given, 0),)
    kept = distill(tmp_path / "student", SPEC, task, labels, given, 2, 0)
    assert fingerprint_of(teacher.module) == before
    assert all(weight.grad is None and not weight.requires_grad for weight in teacher.module.parameters())
    assert kept.losses[1] < kept.losses[0]


@pytest.mark.usefixtures("plain")
def test_a_teacher_that_changes_while_it_answers_is_refused(tmp_path: Path):
    class Counting(type(net())):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            return super().forward(images) + self.seen

    with pytest.raises(TeacherError, match="changes its own seen"):
        label(tmp_path, from_module(Counting(), digits()), digits(), 0, recipe(), 0)


@pytest.mark.usefixtures("plain")
def test_trying_a_loss_before_the_first_step_leaves_nothing_in_a_bank_or_a_norm(tmp_path: Path):
    losses = {"crd": LossSection(width=8), "fitnet": LossSection(student="body", teacher="map")}
    state = loop._begin(
        tmp_path / "state.safetensors", net(), course(recipe(losses=losses)), torch.device("cpu")
    )
    assert torch.isnan(state.adapters["crd"].norms).all()
    assert (state.adapters["crd"].classes == -1).all()
    assert float(state.adapters["fitnet"].maps[0][1].num_batches_tracked) == 0
