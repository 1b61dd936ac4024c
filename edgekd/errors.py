"""Everything edgekd raises on purpose, and the exit code each kind ends with.

    EdgekdError                70  internal error
    ├── UsageError              2  the command line or the call is wrong
    │   ├── ConfigError         2  a job, a profile or an override is wrong
    │   ├── DataError           2  the data set cannot serve the task
    │   ├── TeacherError        2  the teacher cannot be loaded or does not fit the task
    │   └── ModelError          2  a model file is malformed, hostile or unsupported
    │       └── BuildError      2  a runtime cannot compile this model (the search records it as a trial)
    ├── TrainingError           1  a training diverged and did not recover (the search records it as a trial)
    ├── BudgetError             1  no student meets the budget
    ├── Inconclusive            3  noise too large for the question
    ├── DeviceError             4  the target is unavailable or unhealthy
    │   ├── BackendMissing      4  the runtime is not installed on the target
    │   └── WorkerDied          4  the worker crashed, hung or answered nonsense
    ├── NoBaseline              5  nothing comparable to compare with
    ├── IntegrityError          6  a digest, a path or a key is not what it must be
    └── ResourcesExhausted      7  disk or memory ran out; the state is saved

Every message names the thing, the cause and the mend.
"""

from __future__ import annotations


class EdgekdError(Exception):
    """What went wrong, why, and what to do about it."""

    exit_code = 70

    def __init__(self, what: str, *, cause: str = "", mend: str = "") -> None:
        super().__init__(what, cause, mend)
        self.what = what
        self.cause = cause
        self.mend = mend

    def __str__(self) -> str:
        cause = f": {self.cause}" if self.cause else ""
        mend = f"\n  to mend it: {self.mend}" if self.mend else ""
        return f"{self.what}{cause}{mend}"


class UsageError(EdgekdError):
    """The command line or the call is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """A job, a hardware profile or an override is wrong."""


class DataError(UsageError):
    """The data set cannot serve the task."""


class TeacherError(UsageError):
    """The teacher cannot be loaded, or its outputs do not fit the task."""


class ModelError(UsageError):
    """A model file is malformed, hostile or unsupported."""


class BuildError(ModelError):
    """A runtime cannot compile this model; the search records it as a trial and goes on."""


class TrainingError(EdgekdError):
    """A training diverged and did not recover; the search records it as a trial and goes on."""

    exit_code = 1


class BudgetError(EdgekdError):
    """No student meets the budget."""

    exit_code = 1


class Inconclusive(EdgekdError):  # noqa: N818 - a verdict, named as the exit table names it
    """The noise is too large for the question within the time given."""

    exit_code = 3


class DeviceError(EdgekdError):
    """The target is unavailable or unhealthy."""

    exit_code = 4


class BackendMissing(DeviceError):  # noqa: N818 - reads as the fact it states
    """The runtime is not installed on the target."""


class WorkerDied(DeviceError):  # noqa: N818 - reads as the fact it states
    """The worker crashed, hung or answered nonsense."""


class NoBaseline(EdgekdError):  # noqa: N818 - reads as the fact it states
    """There is nothing comparable to compare with."""

    exit_code = 5


class IntegrityError(EdgekdError):
    """A digest, a path or a key is not what it must be."""

    exit_code = 6


class ResourcesExhausted(EdgekdError):  # noqa: N818 - reads as the fact it states
    """Disk or memory ran out; what was computed is saved and the run can be resumed."""

    exit_code = 7
