from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgekd.distillation import loop, schemes
from edgekd.distillation.arithmetic import Arithmetic
from edgekd.distillation.evaluation import accuracy, outputs_of
from edgekd.distillation.knowledge import (
    LABELS,
    OWN,
    Batch,
    Knowledge,
    Taps,
    student_taps,
    teacher_taps,
    total_loss,
)
from edgekd.distillation.loop import Course, Lesson, train
from edgekd.distillation.losses import LOSSES, knowledge_from, response
from edgekd.distillation.optimization import Average
from edgekd.distillation.state import TrainingState, saved_progress
from edgekd.distillation.views import view_of
from edgekd.errors import UsageError
from edgekd.values.job import TASKS, DistillationSection
from tests.distillation.small import Net, digits, recipe

pytestmark = pytest.mark.usefixtures("plain")

STEPS = 14  # of an epoch: 430 images in batches of 32


def made(seed: int) -> Net:
    torch.manual_seed(seed)
    return Net(dropout=0.2)


def course(given: DistillationSection, epochs: int = 2) -> Course:
    task = digits()
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 10))
    logits = (centres[task.train.labels] + 4 * np.eye(10)[task.train.labels]).astype(np.float16)
    return Course(
        task=task,
        knowledge=knowledge_from(given, classes=10),
        lesson=lambda epoch: Lesson(view=view_of(task, epoch, seed=0), targets={"logits": logits}),
        recipe=given,
        resolution=8,
        epochs=epochs,
        seed=0,
    )


SCHEMES = [
    recipe(scheme="online", losses={"ce": 1.0, "dist": 1.0}),
    recipe(scheme="online", peers=3, losses={"ce": 1.0}, optimizer="adamw", learning_rate=1e-3),
    recipe(scheme="generations", generations=2, losses={"ce": 1.0, "kd": 1.0}),
    recipe(scheme="ema", losses={"ce": 1.0, "kd": 1.0}),
]


@pytest.mark.parametrize("given", SCHEMES, ids=lambda one: f"{one.scheme}-{one.peers}")
def test_a_scheme_that_is_killed_within_an_epoch_ends_with_the_same_weights(
    tmp_path: Path, given: DistillationSection, monkeypatch: pytest.MonkeyPatch
):
    whole = schemes.learn(tmp_path / "whole", made, course(given))
    trainings = 2 if given.scheme == "generations" else 1
    real, count = loop.take_step, itertools.count(1)

    def killed(*args: object) -> Tensor:
        if next(count) in (STEPS + 5, STEPS + 13, 3 * STEPS + 18):  # a step that is taken again counts again
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(loop, "take_step", killed)
    kills = 0
    while True:
        try:
            resumed = schemes.learn(tmp_path / "killed", made, course(given))
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills == trainings + 1
    assert resumed.weights.sha256 == whole.weights.sha256
    assert resumed.accuracy == whole.accuracy
    assert load_file(resumed.weights.path).keys() == made(0).state_dict().keys()


def test_an_offline_course_is_trained_as_ever(tmp_path: Path):
    given = recipe(losses={"ce": 1.0, "kd": 1.0})
    alone = train(tmp_path / "alone", made(0), course(given))
    assert schemes.learn(tmp_path / "scheme", made, course(given)).weights.sha256 == alone.weights.sha256


def test_peers_learn_their_own_task_and_each_towards_the_other_and_nothing_more():
    given = recipe(scheme="online", losses={"ce": 1.0, "kd": 0.5}, mutual=0.7)
    knowledge = schemes.mutual(course(given)).knowledge
    draw = torch.Generator().manual_seed(0)
    first, second, teacher = (torch.randn(6, 10, generator=draw, dtype=torch.float64) for _ in range(3))
    batch = Batch(labels=torch.arange(6))

    def of_both(one: Tensor, other: Tensor) -> Tensor:
        said = {"peers.0": one, "peers.1": other}
        return total_loss(knowledge, nn.ModuleDict(), said, {"logits": teacher}, batch)

    def of_one(own: Tensor, other: Tensor) -> Tensor:
        labelled = nn.functional.cross_entropy(own, batch.labels)
        return labelled + 0.5 * response.kd(own, teacher, batch) + 0.7 * response.kd(own, other, batch)

    torch.testing.assert_close(of_both(first, second), of_one(first, second) + of_one(second, first))
    torch.testing.assert_close(of_both(first, second), of_both(second, first))
    first.requires_grad_()
    of_both(first, second).backward()
    both = first.grad.clone()
    first.grad = None
    of_one(first, second).backward()
    torch.testing.assert_close(both, first.grad)  # nothing comes back from what the other learns


def test_a_peer_is_shared_by_all_others():
    given = recipe(scheme="online", peers=3, losses={"ce": 1.0})
    knowledge = schemes.mutual(course(given)).knowledge
    between = [one for one in knowledge if one.name.startswith("kd@0<")]
    assert [one.teacher for one in between] == [("own:peers.1",), ("own:peers.2",)]
    assert sum(one.weight for one in between) == pytest.approx(1.0)
    assert len({one.name for one in knowledge}) == len(knowledge) == 3 + 6


def test_a_peer_that_hardly_listens_is_trained_as_if_alone(tmp_path: Path):
    given = recipe(scheme="online", losses={"ce": 1.0, "kd": 1.0}, mutual=1e-30, clip=1e6)

    def dry(seed: int) -> Net:
        torch.manual_seed(seed)
        return Net()

    peers = schemes.peers_of(dry, 2, 0)
    train(tmp_path / "peers", peers, schemes.mutual(course(given)))
    alone = dry(0)
    train(tmp_path / "alone", alone, course(dataclasses.replace(given, scheme="offline")))
    for name, value in alone.state_dict().items():
        assert torch.equal(value, peers.peers[0].state_dict()[name]), name
    assert not torch.equal(peers.peers[0].head.weight, peers.peers[1].head.weight)


def test_peers_agree_more_than_networks_that_learn_apart(tmp_path: Path):
    def difference(mutual: float) -> float:
        given = recipe(scheme="online", losses={"ce": 1.0}, mutual=mutual)
        peers = schemes.peers_of(made, 2, 0)
        train(tmp_path / str(mutual), peers, schemes.mutual(course(given, 3)))
        task = digits()
        said = [torch.from_numpy(outputs_of(peer, task, task.validation, 8)) for peer in peers.peers]
        return float(response.kd(said[0], said[1], Batch(labels=torch.arange(1))))

    assert difference(1.0) < 0.5 * difference(1e-9)


def test_the_best_peer_on_validation_is_the_student(tmp_path: Path):
    given = recipe(scheme="online", losses={"ce": 1.0}, peers=3, mutual=0.01)
    kept = schemes.learn(tmp_path, made, course(given, 1))
    held = load_file(tmp_path / "weights.safetensors")
    scores = []
    for at in range(3):
        peer, prefix = made(0), f"peers.{at}."
        own = {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
        peer.load_state_dict(own)
        scores.append(accuracy(peer, digits(), digits().validation, 8))
        if scores[at] == max(scores) > max([0.0, *scores[:at]]):
            best = own
    assert len(set(scores)) > 1
    assert kept.accuracy == max(scores)
    assert all(torch.equal(value, best[name]) for name, value in load_file(kept.weights.path).items())


def test_pooled_features_and_adapters_are_each_peer_s_own(tmp_path: Path):
    given = recipe(scheme="online", losses={"ce": 1.0, "pooled": 1.0})
    wide = np.zeros((len(digits().train), 12), np.float16)
    asked = course(given, 1)
    targets = {"logits": np.zeros((len(wide), 10), np.float16), "pooled": wide}
    view = asked.lesson(0).view
    asked = dataclasses.replace(asked, lesson=lambda _: Lesson(view=view, targets=targets))
    kept = schemes.learn(tmp_path, made, asked)
    state = load_file(tmp_path / "state.safetensors")
    adapters = {name.split("/")[1].split(".")[0] for name in state if name.startswith("adapters/")}
    assert adapters == {"pooled@0", "pooled@1"}
    assert load_file(kept.weights.path).keys() == made(0).state_dict().keys()


def test_what_the_average_says_is_what_its_weights_say_at_that_step():
    given = recipe(scheme="ema", losses={"ce": 1.0})
    asked = schemes.with_average(course(given))
    module = made(0)
    average = Average(module, 0.9)
    says = asked.companion(module, average)
    inputs = torch.randn(4, 1, 8, 8)
    before = says(inputs)["average:logits"]
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(1.0)
    average.update(3)
    after = says(inputs)["average:logits"]
    expected = made(1)
    expected.load_state_dict(average.tensors)
    torch.testing.assert_close(after, expected.eval()(inputs))
    assert not torch.equal(before, after)
    assert not after.requires_grad


def test_a_student_agrees_with_its_average_beside_what_the_teacher_says():
    given = recipe(scheme="ema", losses={"ce": 1.0, "kd": 1.0}, mutual=2.0)
    *asked, own = schemes.with_average(course(given)).knowledge
    assert [one.name for one in asked] == ["ce", "kd"]
    assert own.teacher == ("average:logits",)
    assert own.weight_at(0.125) == pytest.approx(1.0)  # half of it, half way through the first quarter
    assert own.weight_at(1.0) == 2.0


def test_a_generation_learns_from_the_one_before_and_leaves_it_as_it_is(tmp_path: Path):
    given = recipe(scheme="generations", generations=2, losses={"kd": 1.0}, batch=16, learning_rate=0.1)
    first, second = schemes.plan(tmp_path, made, course(given, 6))
    for part in (first, second):
        part.folder.mkdir(exist_ok=True)
    train(first.folder, one := made(0), first.course)
    kept = (first.folder / "weights.safetensors").read_bytes()
    assert second.course.lesson(0).targets == {}  # the teacher is not asked any more
    train(second.folder, two := second.module(), second.course)
    assert (first.folder / "weights.safetensors").read_bytes() == kept
    task = digits()
    said = [outputs_of(net, task, task.validation, 8).argmax(1) for net in (one, two)]
    assert (said[0] == said[1]).mean() > 0.5  # no label was seen, and a tenth would agree by chance
    assert not torch.equal(one.head.weight, two.head.weight)


def test_an_earlier_generation_is_tapped_where_the_student_is():
    given = recipe(scheme="generations", losses={"ce": 1.0, "pooled": 1.0})
    asked = course(given)
    elsewhere = Knowledge(name="at", loss=response.mse, student=("body",), teacher=("layer3",), adapter=None)
    own = dataclasses.replace(elsewhere, name="own", teacher=(f"{OWN}head",))
    asked = dataclasses.replace(asked, knowledge=(*asked.knowledge, elsewhere, own))
    later = schemes.plan(Path("nowhere"), made, asked)[1].course.knowledge
    assert [one.teacher for one in later] == [(LABELS,), ("pooled",), ("body",), ("own:head",)]


@pytest.mark.parametrize("given", SCHEMES, ids=lambda one: f"{one.scheme}-{one.peers}")
def test_only_what_learns_is_in_the_optimizer(
    given: DistillationSection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    states: list[TrainingState] = []
    real = loop.take_step

    def watched(state: TrainingState, *rest: object) -> Tensor:
        states.append(state)
        return real(state, *rest)

    monkeypatch.setattr(loop, "take_step", watched)
    schemes.learn(tmp_path, made, course(given, 1))
    for state in {id(one): one for one in states}.values():
        assert {id(one) for one in state.trained()} == {id(one) for one in state.module.parameters()}


def test_a_cluster_s_epochs_lead_to_the_same_student(tmp_path: Path):
    for given in SCHEMES[1:3]:
        name = given.scheme
        whole = schemes.learn(tmp_path / name / "whole", made, course(given))
        for epoch in (1, 2):
            progress = schemes.learn_an_epoch(tmp_path / name / "epochs", made, course(given))
            assert progress.epoch == epoch
        after = schemes.learn(tmp_path / name / "epochs", made, course(given))
        assert after.weights.sha256 == whole.weights.sha256


def test_every_task_has_a_loss_that_compares_two_students():
    assert set(schemes.MUTUAL) == set(TASKS)
    for kind, names in schemes.MUTUAL.items():
        assert all(kind in LOSSES[name].tasks for name in names)


def test_a_student_can_learn_from_a_deeper_tap_of_its_own():
    exits = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    given = Knowledge(name="exit", loss=response.mse, student=("0",), teacher=(f"{OWN}1",))
    assert student_taps([given]) == ("0", "1")
    assert teacher_taps([given]) == ("logits",)
    with Taps(exits, student_taps([given])) as taps:
        said = taps(torch.randn(3, 4))
    loss = total_loss([given], nn.ModuleDict(), said, {}, Batch(labels=torch.zeros(3)))
    torch.testing.assert_close(loss, (said["0"] - said["1"]).square().mean())
    loss.backward()
    assert exits[0].weight.grad is not None
    assert exits[1].weight.grad is None  # what teaches is not changed by it


def test_a_tap_of_a_peer_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="no module"):
        Taps(schemes.peers_of(made, 2, 0), ["peers.2/pooled"])


def test_a_state_of_fewer_peers_is_not_taken_up(tmp_path: Path):
    two, three = (recipe(scheme="online", losses={"ce": 1.0}, peers=count) for count in (2, 3))
    schemes.learn(tmp_path, made, course(two, 1))
    schemes.learn(tmp_path, made, course(three, 2))
    assert saved_progress(tmp_path / "state.safetensors").epoch == 2
    assert isinstance(saved_progress(tmp_path / "state.safetensors").arithmetic, Arithmetic)
