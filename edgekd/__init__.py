"""edgekd: a teacher and a latency budget in, a measured and accepted student out.

The nouns live here; the verb is `edgekd.pipeline.run`. Importing this package never imports torch, because
the worker on the device has none.
"""

from edgekd.values.budget import Budget, LatencyBudget
from edgekd.values.job import (
    DistillationSection,
    Job,
    SearchSection,
    TargetSection,
    TaskSection,
    TeacherSection,
)
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.student import Space, StageSpec, StudentSpec
from edgekd.values.target import Profile, Target
from edgekd.values.trial import History, Trial, Verdict

__all__ = [
    "Budget", "DistillationSection", "Engine", "History", "Job", "Latency", "LatencyBudget", "Model", "Precision",
    "Profile", "Protocol", "SearchSection", "Space", "StageSpec", "StudentSpec", "Target", "TargetSection",
    "TaskSection", "TeacherSection", "Trial", "Verdict",
]  # fmt: skip
