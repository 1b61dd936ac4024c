"""What a user asks for: `job.toml`, section by section."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgekd.errors import ConfigError
from edgekd.values.budget import Budget
from edgekd.values.codec import did_you_mean

TASKS = ("classification",)


@dataclass(frozen=True, kw_only=True)
class TeacherSection:
    """Where knowledge comes from."""

    model: str  # FILE.py:FUNCTION beside the job, or "timm:NAME"
    weights: str | None = None  # .safetensors, or a .pt/.pth/.th state dict
    epochs: int = 0  # of supervised training before it teaches: from scratch, or fine-tuning given weights
    learning_rate: float = 0.05


@dataclass(frozen=True, kw_only=True)
class TaskSection:
    """Data and how it becomes tensors."""

    data: str  # class folders, an .npz, or a built-in name ("digits")
    kind: str = "classification"
    resolution: int | None = None  # side of the teacher's input; None: the images' own
    mean: tuple[float, ...] | None = None  # of pixels in [0, 1]; None: computed from the training images
    std: tuple[float, ...] | None = None
    validation: float = 0.1  # share of the training images kept for choosing a student
    flip: bool = True  # mirror images at random: wrong for digits and letters
    crop: int = 4  # pixels of padding for random crops, at the teacher's resolution

    def __post_init__(self) -> None:
        if self.kind not in TASKS:
            raise ConfigError(f"there is no task {self.kind!r}", mend=did_you_mean(self.kind, TASKS))
        if not 0 < self.validation < 1:
            raise ConfigError("[task] validation must lie between 0 and 1", cause=f"it is {self.validation}")


@dataclass(frozen=True, kw_only=True)
class TargetSection:
    """Where the student will run."""

    profile: str = "x86-cpu"  # a name in hardware_profiles/, or a path
    device: str = "local"
    runtimes: tuple[str, ...] = ()  # none: all of the profile's
    threads: int | None = None  # None: the profile's


@dataclass(frozen=True, kw_only=True)
class SearchSection:
    """How much is tried."""

    trials: int = 8  # students distilled briefly
    finalists: int = 2  # of them distilled fully
    probes: int = 8  # untrained students timed first, to learn the device
    families: tuple[str, ...] = ("residual", "inverted")
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("trials", "finalists", "probes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"[search] {name} must be at least 1", cause=f"it is {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class DistillationSection:
    """How a student is trained."""

    losses: dict[str, float] = field(default_factory=lambda: {"ce": 1.0, "dist": 1.0})  # name -> weight
    temperature: float = 1.0
    epochs: int = 20
    short_epochs: int = 3
    views: int = 8  # augmented versions of each image the teacher labels once and all students share
    batch: int = 128
    optimizer: str = "sgd"  # or "adamw"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    mixup: float = 0.0  # alpha of the Beta distribution; 0: off
    ema: float = 0.99  # decay a step of the averaged weights that are evaluated; 0: off
    clip: float = 5.0  # norm of the gradient

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adamw"):
            mend = did_you_mean(self.optimizer, ["sgd", "adamw"])
            raise ConfigError(f"there is no optimizer {self.optimizer!r}", mend=mend)
        if self.epochs < 1 or self.short_epochs < 1 or self.views < 1 or self.batch < 1:
            raise ConfigError("[distillation] epochs, short_epochs, views and batch must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One teacher, one task, one target, one budget."""

    teacher: TeacherSection
    task: TaskSection
    budget: Budget
    target: TargetSection = field(default_factory=TargetSection)
    search: SearchSection = field(default_factory=SearchSection)
    distillation: DistillationSection = field(default_factory=DistillationSection)
