"""What the teacher says of the training samples: once for every student of a run."""

from __future__ import annotations

from edgekd.pipeline.workbench import Workbench
from edgekd.stages.label import label
from edgekd.values.checkpoint import Labels
from edgekd.values.job import DistillationSection


def labels(bench: Workbench, epochs: int) -> tuple[Labels, ...]:
    """Return the teacher's outputs on as many views as `epochs` can use."""
    recipe = bench.job.distillation
    # Only these change what the teacher says: the same labels then serve another learning rate.
    asked = DistillationSection(losses=recipe.losses, mixup=recipe.mixup)
    views = range(min(epochs, recipe.views))
    return tuple(bench.store.run(label, bench.teacher, bench.task, view, asked, bench.seed) for view in views)
