"""What every task promises; a task's tests inherit the suite and give `task()`, `again()` and `right()`."""

from __future__ import annotations

import dataclasses
import importlib
import json

import numpy as np
import torch

from edgekd import students
from edgekd.distillation.evaluation import outputs_of
from edgekd.distillation.fitting import knowledge_for
from edgekd.distillation.knowledge import LABELS
from edgekd.distillation.views import batch_view, view_of
from edgekd.stages.evaluate import stepping
from edgekd.tasks import LOADERS, Split, Stepwise, Task
from edgekd.values.bundle import Manifest
from edgekd.values.codec import decode, fingerprint, plain
from edgekd.values.job import DistillationSection
from edgekd.values.preprocess import Recipe
from edgekd.values.student import StudentSpec

PARTS = ("train", "validation", "test")


def smallest(task: Task) -> list[StudentSpec]:
    """The cheapest student of each family, at each resolution that the task's space holds."""
    space = students.space_for(
        resolution=task.resolution, channels=task.channels, classes=task.outputs, families=task.families
    )
    return [
        dataclasses.replace(students.smallest(space, family), resolution=resolution)
        for family in space.families
        for resolution in space.resolutions
    ]


class TaskContract:
    """Subclass it, name the subclass Test..., and give the three methods."""

    def task(self) -> Task:
        raise NotImplementedError

    def again(self) -> Task:
        """Load the same data in the same way, anew."""
        raise NotImplementedError

    def right(self, task: Task, split: Split) -> np.ndarray:
        """Return outputs, floats (n, *answer_shape), that say what the labels say: they score 1."""
        raise NotImplementedError

    def test_its_kind_can_be_asked_for_and_its_families_and_losses_serve_it(self):
        task = self.task()
        assert task.kind in LOADERS
        assert task.families
        assert set(task.families) <= set(students.FAMILIES)
        learnt = knowledge_for(DistillationSection(), task)
        assert {one.name for one in learnt} == set(task.losses)
        (taught,) = knowledge_for(DistillationSection(losses={task.criterion: 1.0}), task)
        assert set(taught.teacher) == {LABELS}

    def test_every_part_holds_samples_with_a_label_each(self):
        task = self.task()
        for name in PARTS:
            part = task.split(name)
            assert part is getattr(task, name)
            assert len(part) == len(part.samples) == len(part.labels) > 0

    def test_no_sample_is_in_two_parts(self):
        task = self.task()
        seen = [{sample.tobytes() for sample in task.split(name).samples} for name in PARTS]
        assert len(set.union(*seen)) == sum(map(len, seen))

    def test_its_fingerprint_names_the_content_and_not_the_object(self):
        assert self.task().fingerprint == self.again().fingerprint
        assert fingerprint([self.task()]) == fingerprint([self.again()])

    def test_its_fingerprint_changes_with_a_sample_and_with_a_label(self):
        task = self.task()
        for place in ("samples", "labels"):
            for name in PARTS:
                part = task.split(name)
                changed = np.array(getattr(part, place))
                changed[0] = changed[0] + 1
                other = dataclasses.replace(task, **{name: dataclasses.replace(part, **{place: changed})})
                assert other.fingerprint != task.fingerprint

    def test_inputs_are_what_the_runner_makes_of_the_samples(self):
        task = self.task()
        few = task.test.spread(3)
        for resolution in {spec.resolution for spec in smallest(task)}:
            kept = json.loads(json.dumps(plain(task.preprocess(resolution))))
            runner = importlib.import_module(f"edgekd.runner.from_{kept['kind']}")
            made = task.prepare(few.samples, resolution)
            assert made.dtype in (np.float32, np.int64)
            np.testing.assert_array_equal(made, runner.prepare(np.asarray(few.samples), kept))
            np.testing.assert_array_equal(made[:, None], task.inputs(task.test, resolution, 3))
            assert decode(Recipe, kept) == task.preprocess(resolution)

    def test_a_limit_spreads_over_the_whole_part(self):
        task = self.task()
        part = task.test.spread(4)
        assert len(part) == 4
        assert part.samples[0].tobytes() == task.test.samples[0].tobytes()
        assert len({sample.tobytes() for sample in part.samples}) == 4
        assert len(task.inputs(task.test, task.resolution, 4)) == 4
        assert len(task.inputs(task.test, task.resolution)) == len(task.test)

    def test_students_of_every_family_take_its_inputs_and_give_its_answers(self):
        task = self.task()
        few = task.test.spread(2)
        for spec in smallest(task):
            module = students.build(spec, channels=task.channels, classes=task.outputs)
            found = outputs_of(module, task, few, spec.resolution)
            assert found.shape == (2, *task.answer_shape(spec.resolution))
            assert np.isfinite(task.score(found, few.labels))
            takes = students.inputs(spec, task.channels)
            if not isinstance(task, Stepwise):
                (shape,) = takes.values()
                assert shape == (1, *task.prepare(few.samples, spec.resolution).shape[1:])

    def test_views_of_the_training_samples_are_what_a_student_takes(self):
        task = self.task()
        spec = smallest(task)[0]
        rows = np.arange(min(4, len(task.train)))
        still = dataclasses.replace(
            view_of(task, 0, seed=0),
            **{name: np.zeros(len(task.train), np.int64) for name in ("down", "right")},
        )
        still = dataclasses.replace(still, mirrored=np.zeros(len(task.train), bool))
        inputs, labels = batch_view(task, rows, still, task.resolution)
        expected = task.prepare(task.train.samples[rows], task.resolution)
        np.testing.assert_allclose(inputs.numpy(), expected, atol=1e-5)
        np.testing.assert_array_equal(labels.numpy(), task.train.labels[rows])
        moved, _ = batch_view(task, rows, view_of(task, 1, seed=0), spec.resolution)
        assert moved.shape == task.prepare(task.train.samples[rows], spec.resolution).shape
        assert torch.isfinite(moved.float()).all()

    def test_right_answers_score_one_and_those_that_are_not_finite_are_wrong(self):
        task = self.task()
        part = task.test
        answers = self.right(task, part).astype(np.float32)
        assert answers.shape == (len(part), *task.answer_shape(task.resolution))
        whole = task.score(answers, part.labels)
        assert 0.99 < whole <= 1.0
        for bad in (np.nan, np.inf):
            spoilt = answers.copy()
            spoilt[0] = bad
            assert task.score(spoilt, part.labels) < whole
            assert task.score(np.full_like(answers, bad), part.labels) <= 0
        assert task.score(np.zeros_like(answers), part.labels) < whole

    def test_how_outputs_become_answers_survives_the_manifest(self):
        task = self.task()
        found = task.decoding(task.resolution)
        kept = json.loads(json.dumps(found, allow_nan=False))
        assert kept == found
        hints = {field.name: field for field in dataclasses.fields(Manifest)}
        assert "decoding" in hints

    def test_steps_answer_what_the_whole_network_does(self):
        task = self.task()
        if not isinstance(task, Stepwise):
            return
        few = task.test.spread(2)
        for spec in smallest(task):
            module = students.build(spec, channels=task.channels, classes=task.outputs)
            whole = outputs_of(module, task, few, spec.resolution)
            steps = task.answers(stepping(spec, task, None), few, students.inputs(spec, task.channels))
            assert steps.shape == whole.shape
            np.testing.assert_allclose(steps, whole, atol=1e-5 * np.abs(whole).max())


class ClassContract(TaskContract):
    """A task that is answered by a score for each class."""

    def right(self, task: Task, split: Split) -> np.ndarray:
        return np.eye(len(task.classes))[split.labels]

    def test_every_part_holds_samples_of_every_class(self):
        task = self.task()
        assert task.outputs == len(task.classes)
        for name in PARTS:
            assert set(task.split(name).labels.tolist()) == set(range(len(task.classes)))

    def test_a_row_that_is_not_finite_costs_its_share(self):
        task = self.task()
        perfect = self.right(task, task.test)
        perfect[0, :] = np.nan
        assert task.score(perfect, task.test.labels) == 1 - 1 / len(task.test)

    def test_samples_and_labels_can_be_mixed(self):
        task = self.task()
        rows = np.arange(4)
        _, labels = batch_view(task, rows, view_of(task, 0, seed=0, mixup=1.0), task.resolution)
        torch.testing.assert_close(labels.sum(dim=1), torch.ones(4))
