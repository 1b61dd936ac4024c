"""edgekd: a teacher and a latency budget in, a measured and accepted student out.

The nouns live here; the verb is `edgekd.pipeline.run`. Importing this package never imports torch, because
the worker on the device has none; and it imports a noun only when it is asked for, because `edgekd --help` and
every start of a worker wait for this file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_MODULES = ("budget", "job", "latency", "model", "student", "target", "trial")  # of edgekd.values


def __getattr__(name: str) -> object:
    """Find a noun in the module that defines it."""
    if name in __all__:
        for module in _MODULES:
            found = vars(importlib.import_module(f"edgekd.values.{module}")).get(name)
            if found is not None:
                return found
    raise AttributeError(f"module 'edgekd' has no attribute {name!r}")
