"""What a user asks for: `job.toml`, section by section."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from edgekd.errors import ConfigError
from edgekd.values.budget import Budget
from edgekd.values.codec import did_you_mean

TASKS = (
    "classification", "recognition", "regression", "ranking", "generation", "keywords", "detection",
    "segmentation",
)  # fmt: skip
CLASSIFYING = ("classification", "keywords")  # answered by a score for each class
CLASSIFICATION_LOSSES = {"ce": 1.0, "dist": 1.0}  # by name; a job's own settings join these
LEAST_PROBES = 3  # below it, no latency can be expected of a student that was not timed
SAMPLERS = ("edgekd", "optuna-tpe", "optuna-nsga2", "optuna-gp", "optuna-random")  # who proposes students
AIMS = ("accuracy", "frontier")  # what a search is after
BALANCES = ("fixed", "uncertainty", "magnitude")  # how the weighted losses are summed
SCHEMES = ("offline", "online", "generations", "ema")  # who trains when
_SPLITS = ("train", "test")
_MODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_ .+-]{0,39}")  # a power mode, as nvpmodel names them


@dataclass(frozen=True, kw_only=True)
class OtherTeacher:
    """One of several teachers that answer together: `[[teacher.others]]`."""

    model: str  # as in [teacher]
    weights: str | None = None
    weight: float = 1.0  # of its answer in the mean
    mean: tuple[float, ...] | None = None  # of pixels in [0, 1], as it was trained with; None: the task's
    std: tuple[float, ...] | None = None
    trusted: bool = False

    def __post_init__(self) -> None:
        _require("[[teacher.others]] weight must be above 0", self.weight, holds=self.weight > 0)
        if (self.mean is None) != (self.std is None):
            raise ConfigError("[[teacher.others]] mean and std belong together", mend="give both, or neither")
        holds = self.std is None or all(value > 0 for value in self.std)
        _require("[[teacher.others]] std must be above 0", self.std, holds=holds)


@dataclass(frozen=True, kw_only=True)
class TeacherSection:
    """Where knowledge comes from."""

    model: str  # FILE.py:FUNCTION, FILE.onnx or FILE.pt2 beside the job, or "timm:NAME"
    weights: str | None = None  # .safetensors, or a .pt/.pth/.th state dict
    epochs: int = 0  # of supervised training before it teaches: from scratch, or fine-tuning given weights
    learning_rate: float = 0.05
    trusted: bool = False  # the author of a .pt2: opening one may run code
    weight: float = 1.0  # of its answer, where others answer with it
    others: tuple[OtherTeacher, ...] = ()

    def __post_init__(self) -> None:
        _require("[teacher] epochs must be at least 0", self.epochs, holds=self.epochs >= 0)
        _require("[teacher] weight must be above 0", self.weight, holds=self.weight > 0)
        _require("[teacher] learning_rate must be above 0", self.learning_rate, holds=self.learning_rate > 0)


@dataclass(frozen=True, kw_only=True)
class TaskSection:
    """Data and how it becomes tensors."""

    data: str  # class folders, an .npz, or a built-in name ("digits"); what else, the kind says
    kind: str = "classification"
    resolution: int | None = None  # side of the teacher's input; None: the images' own
    mean: tuple[float, ...] | None = None  # of pixels in [0, 1]; None: computed from the training images
    std: tuple[float, ...] | None = None
    validation: float = 0.1  # share of the images of `validation_from` kept for choosing a student
    validation_from: str = "train"  # or "test": for a teacher whose weights have seen the training images
    flip: bool = True  # mirror images at random: wrong for digits and letters
    crop: int = 4  # pixels of padding for random crops, at the teacher's resolution
    embedding: int = 64  # recognition: numbers that an image is described by

    def __post_init__(self) -> None:
        if self.kind not in TASKS:
            raise ConfigError(f"there is no task {self.kind!r}", mend=did_you_mean(self.kind, TASKS))
        _require("[task] validation must lie between 0 and 1", self.validation, holds=0 < self.validation < 1)
        if self.validation_from not in _SPLITS:
            mend = did_you_mean(self.validation_from, _SPLITS)
            raise ConfigError(f"[task] validation_from cannot be {self.validation_from!r}", mend=mend)
        _require("[task] crop must be at least 0", self.crop, holds=self.crop >= 0)
        _require("[task] embedding must be at least 2", self.embedding, holds=self.embedding > 1)
        side = self.resolution
        _require("[task] resolution must be at least 1", side, holds=side is None or side >= 1)
        if (self.mean is None) != (self.std is None):
            raise ConfigError("[task] mean and std belong together", mend="give both, or neither")
        if self.mean is not None and self.std is not None:
            same = len(self.mean) == len(self.std) and len(self.mean) in (1, 3)
            _require("[task] mean and std need a value a channel, 1 or 3 each", self.std, holds=same)
            _require("[task] std must be above 0", self.std, holds=all(value > 0 for value in self.std))


@dataclass(frozen=True, kw_only=True)
class TargetSection:
    """Where the student will run."""

    profile: str = "x86-cpu"  # a name in hardware_profiles/, or a path
    device: str = "local"
    runtimes: tuple[str, ...] = ()  # none: all of the profile's
    threads: int | None = None  # None: the profile's
    tune: str = ""  # of a Jetson while it measures: "clocks" are held, or a power mode set; empty: neither
    wait_s: float = 0.0  # for another's measurement on the device to end
    record: str = ""  # file that the session with the device is written into, for `cassette:FILE`

    def __post_init__(self) -> None:
        holds = self.threads is None or self.threads >= 1
        _require("[target] threads must be at least 1", self.threads, holds=holds)
        _require("[target] wait_s must be at least 0", self.wait_s, holds=self.wait_s >= 0)
        if self.tune and not _MODE.fullmatch(self.tune):
            mend = 'write tune = "clocks", or the name or number of a power mode, such as "MAXN"'
            raise ConfigError(f"[target] tune cannot be {self.tune[:60]!r}", mend=mend)


@dataclass(frozen=True, kw_only=True)
class SearchSection:
    """How much is tried."""

    trials: int = 8  # students distilled briefly
    finalists: int = 2  # of them distilled fully
    probes: int = 8  # untrained students timed first, to learn the device; at least 3
    families: tuple[str, ...] = ()  # none: the task's
    sampler: str = "edgekd"  # or one of Optuna's: "optuna-tpe", "optuna-nsga2", "optuna-gp", "optuna-random"
    aim: str = "accuracy"  # the most within the budget; "frontier": the trials also try smaller budgets
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("trials", "finalists"):
            value = getattr(self, name)
            _require(f"[search] {name} must be at least 1", value, holds=value >= 1)
        if self.probes < LEAST_PROBES:
            raise ConfigError(
                f"[search] probes must be at least {LEAST_PROBES}",
                cause=f"it is {self.probes}, and fewer timed students do not tell what another would take",
                mend=f"write probes = {LEAST_PROBES}, or leave it out for 8",
            )
        for name, known in (("sampler", SAMPLERS), ("aim", AIMS)):
            if getattr(self, name) not in known:
                mend = did_you_mean(getattr(self, name), known)
                raise ConfigError(f"[search] {name} cannot be {getattr(self, name)!r}", mend=mend)


@dataclass(frozen=True, kw_only=True)
class LossSection:
    """How one loss is used; what is left out is as `edgekd.distillation.losses.catalogue()` lists it.

    Below the taps and weights stand the settings of methods, under one name each wherever several share one; a
    method refuses those that it does not have.
    """

    weight: float | None = None
    student: (
        str | tuple[str, ...]
    ) = ()  # taps: "logits", "pooled" or names of modules; none: the method's own
    teacher: str | tuple[str, ...] = ()
    warm_up: float | None = None  # share of the training over which the weight rises from 0
    confidence: float = 0.0  # learn only where the teacher gives the label at least this probability

    temperature: float | None = None  # of softened probabilities
    alpha: float | None = None
    beta: float | None = None
    gamma: float | None = None
    epsilon: float | None = None  # ofa: exponent of the target
    power: int | None = None  # at, srd: exponent of the features, or of their difference
    masked: float | None = None  # mgd: share of the channels that is hidden
    distance: float | None = None  # rkd: weights of its two parts
    angle: float | None = None
    variance: float | None = None  # vid: at the start
    tau: float | None = None  # infonce, crd: temperature of the contrast
    width: int | None = None  # of what an adapter embeds in
    negatives: int | None = None  # crd: samples that each is told apart from
    momentum: float | None = None  # crd: of its bank
    margin: float | None = None  # bounded: of the teacher's error; cosface: of a cosine
    nu: float | None = None  # bounded: weight of what the teacher bounds
    cut: float | None = None  # rejecting: deviations beyond which a label is left out
    eta: float | None = None  # ail, aht: error at which a teacher is not trusted at all
    top: int | None = None  # of a list
    decay: float | None = None  # rank_distillation: of the weights of ranks
    mu: float | None = None
    press: float | None = None  # rankdistil: weight of the items below the top
    experts: int | None = None
    coldest: float | None = None  # experts: temperature at the end
    scale: float | None = None  # cosface: of cosines

    def __post_init__(self) -> None:
        weight, warm_up = self.weight, self.warm_up
        _require("the weight of a loss must be at least 0", weight, holds=weight is None or weight >= 0)
        _require("warm_up of a loss must lie in [0, 1)", warm_up, holds=warm_up is None or 0 <= warm_up < 1)
        _require("confidence of a loss must lie in [0, 1)", self.confidence, holds=0 <= self.confidence < 1)
        for name in ("masked", "momentum"):
            value = getattr(self, name)
            _require(f"{name} of a loss must lie in [0, 1)", value, holds=value is None or 0 <= value < 1)
        above = (
            "temperature",
            "tau",
            "variance",
            "power",
            "width",
            "negatives",
            "eta",
            "top",
            "decay",
            "scale",
        )
        for name in (*above, "experts", "coldest", "cut"):
            value = getattr(self, name)
            _require(f"{name} of a loss must be above 0", value, holds=value is None or value > 0)


@dataclass(frozen=True, kw_only=True)
class DistillationSection:
    """How a student is trained."""

    # name -> its weight, or a table of its settings; none: the task's
    losses: dict[str, float | LossSection] = field(default_factory=dict)
    temperature: float | None = None  # of every loss that has one and no own in its table; None: the method's
    balance: str = "fixed"  # or "uncertainty" (learned), or "magnitude" (each divided by its running mean)
    epochs: int = 20
    short_epochs: int = 3
    quantized_epochs: int = (
        3  # of a finalist that rounding to int8 costs too much, trained on as int8; 0: never
    )
    views: int = 8  # augmented versions of each image the teacher labels once and all students share
    batch: int = 128
    optimizer: str = "sgd"  # or "adamw"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    mixup: float = 0.0  # alpha of the Beta distribution; 0: off
    ema: float = 0.99  # decay a step of the averaged weights that are evaluated; 0: off
    clip: float = 5.0  # norm of the gradient
    # Beside the teacher: "online" trains peers that also teach each other, "generations" students that each teach the
    # next, and "ema" a student that also agrees with the average of its own weights.
    scheme: str = "offline"
    peers: int = 2  # online: how many; the best of them on validation is the student
    generations: int = 2  # generations: how many; the first learns from the teacher, the last is the student
    mutual: float = 1.0  # online, ema: weight of what the peers say, or the average

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adamw"):
            mend = did_you_mean(self.optimizer, ["sgd", "adamw"])
            raise ConfigError(f"there is no optimizer {self.optimizer!r}", mend=mend)
        for name in ("epochs", "short_epochs", "views", "batch"):
            value = getattr(self, name)
            _require(f"[distillation] {name} must be at least 1", value, holds=value >= 1)
        quantized = self.quantized_epochs
        _require("[distillation] quantized_epochs must be at least 0", quantized, holds=quantized >= 0)
        if self.balance not in BALANCES:
            raise ConfigError(
                f"[distillation] balance cannot be {self.balance!r}",
                mend=did_you_mean(self.balance, BALANCES),
            )
        self._check_scheme()
        for name in ("temperature", "learning_rate", "clip", "mutual"):
            value = getattr(self, name)
            _require(f"[distillation] {name} must be above 0", value, holds=value is None or value > 0)
        for name in ("weight_decay", "mixup"):
            value = getattr(self, name)
            _require(f"[distillation] {name} must be at least 0", value, holds=value >= 0)
        _require("[distillation] ema must lie in [0, 1)", self.ema, holds=0 <= self.ema < 1)
        weights = [one.weight if isinstance(one, LossSection) else one for one in self.losses.values()]
        holds = not weights or (
            any(one is None or one > 0 for one in weights) and all(one is None or one >= 0 for one in weights)
        )
        _require("[distillation] losses need weights of at least 0, one above it", self.losses, holds=holds)

    def _check_scheme(self) -> None:
        if self.scheme not in SCHEMES:
            mend = did_you_mean(self.scheme, SCHEMES)
            raise ConfigError(f"[distillation] scheme cannot be {self.scheme!r}", mend=mend)
        for name, (least, most) in (("peers", (2, 8)), ("generations", (1, 10))):
            value = getattr(self, name)
            what = f"[distillation] {name} must lie between {least} and {most}"
            _require(what, value, holds=least <= value <= most)
        if self.scheme == "ema" and not self.ema:
            raise ConfigError(
                'the scheme "ema" needs averaged weights',
                cause="[distillation] ema is 0, and there is no average to agree with",
                mend="write ema = 0.99, or leave it out",
            )


@dataclass(frozen=True, kw_only=True)
class Job:
    """One teacher, one task, one target, one budget."""

    teacher: TeacherSection
    task: TaskSection
    budget: Budget
    target: TargetSection = field(default_factory=TargetSection)
    search: SearchSection = field(default_factory=SearchSection)
    distillation: DistillationSection = field(default_factory=DistillationSection)


def _require(what: str, value: object, *, holds: bool) -> None:
    if not holds:
        raise ConfigError(what, cause=f"it is {value}")
