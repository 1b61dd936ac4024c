"""What every task promises; a task's tests inherit the suite and give `task()` and `again()`."""

from __future__ import annotations

import json

import numpy as np

from edgekd import runner
from edgekd.tasks import ImageClassification
from edgekd.values.codec import fingerprint, plain


class TaskContract:
    """Subclass it, name the subclass Test..., and give the two methods."""

    def task(self) -> ImageClassification:
        raise NotImplementedError

    def again(self) -> ImageClassification:
        """Load the same data in the same way, anew."""
        raise NotImplementedError

    def test_every_part_holds_images_of_every_class(self):
        task = self.task()
        for name in ("train", "validation", "test"):
            assert set(task.split(name).labels.tolist()) == set(range(len(task.classes)))

    def test_no_image_is_in_two_parts(self):
        task = self.task()
        parts = (task.train, task.validation, task.test)
        seen = [{image.tobytes() for image in part.images} for part in parts]
        assert len(set.union(*seen)) == sum(map(len, seen))

    def test_its_fingerprint_names_the_content_and_not_the_object(self):
        assert self.task().fingerprint == self.again().fingerprint
        assert fingerprint([self.task()]) == fingerprint([self.again()])

    def test_inputs_are_what_the_runner_makes_of_the_images(self):
        task = self.task()
        for resolution in (task.resolution, task.resolution + 3):
            recipe = json.loads(json.dumps(plain(task.preprocess(resolution))))
            made = task.inputs(task.test, resolution, limit=3)
            assert made.shape == (3, 1, task.channels, resolution, resolution)
            assert made.dtype == np.float32
            expected = runner.preprocess(task.test.spread(3).images, recipe)
            np.testing.assert_array_equal(made[:, 0], expected)

    def test_a_limit_spreads_over_the_whole_part(self):
        part = self.task().test.spread(4)
        assert len(part) == 4
        assert len({image.tobytes() for image in part.images}) == 4

    def test_perfect_logits_score_one_and_rows_that_are_not_finite_score_nothing(self):
        task = self.task()
        labels = task.test.labels
        perfect = np.eye(len(task.classes))[labels]
        assert task.score(perfect, labels) == 1.0
        perfect[0, :] = np.nan
        assert task.score(perfect, labels) == 1 - 1 / len(labels)
