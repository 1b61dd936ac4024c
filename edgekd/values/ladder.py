"""The parity ladder: from one form of a model to the next, how far each departs from the one before, and where."""

from __future__ import annotations

from dataclasses import dataclass, field

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Blame:
    """A layer that departs from its counterpart even where it is given the counterpart's own inputs."""

    layer: str  # its name in the file
    operator: str
    own_error: float  # what it adds by itself, as a share of what it gives: `stages.bisect.departure`
    error: float  # as it runs, with what the layers before it added
    limit: float  # what it may add
    counterpart: str = ""  # the layer that it was held against, where its name is another
    module: str = ""  # the torch module that it was made of
    source: str = ""  # FILE:LINE of that module, or of the line that calls the operator

    @property
    def stands_out(self) -> bool:
        """Whether it is beyond its limit; else it only adds the most."""
        return not self.own_error <= self.limit


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One form of a model, run; and how far its outputs lie from those of the rung it is held against."""

    name: str  # "int8.onnx on onnxruntime"
    against: str = ""  # empty: nothing stands above it
    passed: bool | None = None  # None: nothing to hold it against, or it could not be run here
    output: str = ""  # the one that departs furthest
    error: float | None = None  # of that output, as a share of its scale
    limit: float | None = None  # what that may be; None: its labels decide
    changed_labels: int | None = None  # None where no output looks like logits
    samples: int = 0
    problem: str = ""  # why it could not be run, or what is odd about it
    blames: tuple[Blame, ...] = ()  # the first bad layer first, in the order in which they run
    layers: int = 0  # that were held against their counterparts
    inside: str = ""  # why no layer can be named

    @property
    def first_bad(self) -> Blame | None:
        """Where it begins to depart."""
        return self.blames[0] if self.blames else None


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """`edgekd verify MODEL_A MODEL_B --json`."""

    models: tuple[str, ...]
    rungs: tuple[Rung, ...]
    real: bool  # whether the inputs are
    problems: tuple[str, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)  # of the models' files
    schema_version: int = SCHEMA_VERSION

    @property
    def passed(self) -> bool:
        """Whether nothing that could be compared departs by more than it may."""
        return all(rung.passed is not False for rung in self.rungs)

    @property
    def first_bad(self) -> Blame | None:
        """Return the first bad layer of the first rung that fails."""
        return next((rung.first_bad for rung in self.rungs if rung.passed is False and rung.blames), None)
