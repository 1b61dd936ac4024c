from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgekd.distillation import loop
from edgekd.distillation.arithmetic import FORMATS, Arithmetic, choose_arithmetic
from edgekd.distillation.loop import Course, Lesson, train
from edgekd.distillation.losses import knowledge_from
from edgekd.distillation.optimization import Average, make_optimizer, rate_share
from edgekd.distillation.state import TrainingState, saved_progress
from edgekd.distillation.views import view_of
from edgekd.errors import ResourcesExhausted, TrainingError
from edgekd.values.job import DistillationSection
from tests.distillation.small import digits, net, recipe


def course(given: DistillationSection | None = None, epochs: int = 2) -> Course:
    task, given = digits(), given or recipe(losses={"ce": 1.0})
    rng = np.random.default_rng(0)
    targets = {
        "logits": rng.normal(size=(len(task.train), 10)).astype(np.float16),
        "pooled": rng.normal(size=(len(task.train), 12)).astype(np.float16),
    }
    return Course(
        task=task,
        knowledge=knowledge_from(given, classes=10),
        lesson=lambda epoch: Lesson(view=view_of(task, epoch, seed=0, mixup=given.mixup), targets=targets),
        recipe=given,
        resolution=8,
        epochs=epochs,
        seed=0,
    )


def killed_after(course: Course, epochs: int) -> Course:
    """Make the same course end in an interrupt at the beginning of an epoch, as Ctrl-C would."""
    asked = iter(range(1000))

    def lesson(epoch: int) -> Lesson:
        if next(asked) > 0 and epoch >= epochs:  # the first question comes before any epoch
            raise KeyboardInterrupt
        return course.lesson(epoch)

    return dataclasses.replace(course, lesson=lesson)


RECIPES = [
    recipe(losses={"ce": 1.0, "dist": 1.0}),
    recipe(losses={"ce": 1.0, "pooled": 1.0}, mixup=0.3, clip=0.5),
    recipe(losses={"kd": 1.0}, optimizer="adamw", learning_rate=1e-3, ema=0.0),
]


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("given", RECIPES)
def test_a_training_that_is_killed_ends_with_the_same_weights(tmp_path: Path, given: DistillationSection):
    whole = train(tmp_path / "whole", net(dropout=0.2), course(given, 3))
    for epochs in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", net(dropout=0.2), killed_after(course(given, 3), epochs))
        assert saved_progress(tmp_path / "killed/state.safetensors").epoch == epochs
    resumed = train(tmp_path / "killed", net(dropout=0.2), course(given, 3))
    assert resumed.weights.sha256 == whole.weights.sha256
    assert resumed.losses == whole.losses
    assert resumed.accuracy == whole.accuracy


@pytest.mark.parametrize("arithmetic", FORMATS)
def test_every_format_resumes_to_the_same_weights(
    tmp_path: Path, arithmetic: Arithmetic, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "choose_arithmetic", lambda *_, **__: arithmetic)
    whole = train(tmp_path / "whole", net(), course())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", net(), killed_after(course(), 1))
    # What is fastest may differ when the training goes on; what was chosen counts.
    monkeypatch.setattr(loop, "choose_arithmetic", None)
    assert train(tmp_path / "killed", net(), course()).weights.sha256 == whole.weights.sha256
    assert whole.accuracy > 0.2


@pytest.mark.usefixtures("plain")
def test_a_state_that_is_damaged_or_of_another_network_is_not_used(tmp_path: Path):
    whole = train(tmp_path / "whole", net(), course())
    for spoil in (
        lambda path: path.write_bytes(b"torn"),
        lambda path: train(path.parent, net(width=4), course()),
    ):
        folder = tmp_path / "spoilt"
        folder.mkdir(exist_ok=True)
        spoil(folder / "state.safetensors")
        assert train(folder, net(), course()).weights.sha256 == whole.weights.sha256


@pytest.mark.usefixtures("plain")
def test_adapters_are_trained_clipped_and_kept_but_never_shipped(tmp_path: Path):
    given = recipe(losses={"ce": 1.0, "pooled": 1.0})
    kept = train(tmp_path, net(), course(given))
    shipped = load_file(kept.weights.path)
    assert shipped.keys() == net().state_dict().keys()
    state = load_file(tmp_path / "state.safetensors")
    assert {"adapters/pooled.maps.0.weight", "adapters/pooled.maps.0.bias"} <= state.keys()
    assert sum(name.startswith("optimizer/") for name in state) == len(list(net().parameters())) + 2
    assert state["adapters/pooled.maps.0.weight"].shape == (12, 32)


def test_the_adapters_parameters_are_among_the_clipped():
    adapters = torch.nn.ModuleDict({"pooled": torch.nn.Linear(2, 3)})
    trained = TrainingState(net(), adapters, recipe(), Arithmetic()).trained()
    assert any(weight is adapters["pooled"].weight for weight in trained)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_a_number_goes_back_and_halves_the_rate(
    tmp_path: Path, bad: float, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[int, float]] = []

    def spoilt(state: TrainingState, *given: object) -> torch.Tensor:
        loss = loop_take_step(state, *given)
        seen.append((state.progress.epoch, state.optimizer.param_groups[0]["lr"]))
        if state.progress.epoch == 1 and state.progress.halvings < 2:
            for weight in state.module.parameters():
                torch.nn.init.constant_(weight, bad)
            return loss * bad
        return loss

    loop_take_step = loop.take_step
    monkeypatch.setattr(loop, "take_step", spoilt)
    kept = train(tmp_path, net(), course(epochs=2))
    assert saved_progress(tmp_path / "state.safetensors").halvings == 2
    assert all(torch.isfinite(value).all() for value in load_file(kept.weights.path).values())
    first_rates = [rate for at, (epoch, rate) in enumerate(seen) if epoch == 1 and seen[at - 1][0] == 0]
    final = [rate for epoch, rate in seen if epoch == 1][-loop.steps_an_epoch(course()) :]
    assert final[0] == pytest.approx(first_rates[0] / 4)


@pytest.mark.usefixtures("plain")
def test_a_training_that_keeps_diverging_is_given_up_with_its_state_saved(tmp_path: Path):
    spoilt = course()
    wrong = np.full((len(spoilt.task.train), 10), np.nan, np.float16)
    given = dataclasses.replace(
        spoilt,
        knowledge=knowledge_from(recipe(losses={"kd": 1.0}), classes=10),
        lesson=lambda epoch: Lesson(view=spoilt.lesson(epoch).view, targets={"logits": wrong}),
    )
    with pytest.raises(TrainingError, match="epoch 1") as caught:
        train(tmp_path, net(), given)
    assert caught.value.exit_code == 1
    assert saved_progress(tmp_path / "state.safetensors").epoch == 0


@pytest.mark.usefixtures("plain")
def test_a_full_disk_ends_the_training_and_keeps_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, net(), killed_after(course(), 1))
    before = (tmp_path / "state.safetensors").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourcesExhausted) as caught:
        train(tmp_path, net(), course())
    assert caught.value.exit_code == 7
    assert (tmp_path / "state.safetensors").read_bytes() == before


@pytest.mark.usefixtures("plain")
def test_it_learns(tmp_path: Path):
    kept = train(tmp_path, net(width=16), course(recipe(losses={"ce": 1.0}, learning_rate=0.1), 6))
    assert kept.accuracy > 0.7
    assert kept.losses[-1] < 0.6 * kept.losses[0]


def test_the_rate_warms_up_and_falls_to_nearly_nothing():
    shares = [rate_share(step, 100) for step in range(100)]
    assert shares[0] < 0.2
    assert shares.index(max(shares)) == 5
    assert shares[5] == 1.0
    assert shares[5:] == sorted(shares[5:], reverse=True)
    assert 0 < shares[-1] < 0.01


def test_norms_and_biases_do_not_decay():
    optimizer = make_optimizer([net()], recipe(weight_decay=0.1))
    for group in optimizer.param_groups:
        assert all((weight.ndim > 1) == (group["weight_decay"] > 0) for weight in group["params"])


def test_the_average_follows_weights_and_statistics():
    module = net()
    average = Average(module, 0.9)
    before = {name: value.clone() for name, value in average.tensors.items()}
    with torch.no_grad():
        module.head.weight += 1
        module.body[1].running_mean += 1
    average.update(1000)
    for name in ("head.weight", "body.1.running_mean"):
        torch.testing.assert_close(average.tensors[name], before[name] + 0.1)


def test_the_arithmetic_is_chosen_without_touching_the_module():
    module = net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    threads = torch.get_num_threads()
    for training in (True, False):
        chosen = choose_arithmetic(module, torch.randn(8, 1, 8, 8), training=training)
        assert dataclasses.replace(chosen, threads=1) in FORMATS
    assert torch.get_num_threads() == threads
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
