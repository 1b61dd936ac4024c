"""Climb the parity ladder: from one model to another, over every runtime, and to the first bad layer where it breaks."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgekd.backends import TYPED
from edgekd.devices import Device, connect
from edgekd.errors import (
    BackendMissing,
    BuildError,
    DeviceError,
    EdgekdError,
    ModelError,
    ResourcesExhausted,
    UsageError,
)
from edgekd.pipeline.single import RANDOM_INPUTS, check_shapes, inspected
from edgekd.stages.bisect import Found, first_bad, held_against
from edgekd.stages.gather import gather
from edgekd.stages.looking import DEFINITION, Arrays, Form, Rows, Run, Workshop, on_device
from edgekd.stages.match import match
from edgekd.stages.rungs import (
    COARSER,
    LAYER_LIMITS,
    Rules,
    alike,
    judged,
    matched,
    rows_at,
    rows_in,
    worst_rows,
)
from edgekd.values.artifact import Artifact
from edgekd.values.ladder import Ladder, Rung
from edgekd.values.model import Engine, Model, Precision, Signature
from edgekd.values.preprocess import Normalisation
from edgekd.values.target import Target

if TYPE_CHECKING:
    from torch import nn

    from edgekd.stages.torch_forms import Program

log = logging.getLogger(__name__)

Shapes = dict[str, tuple[int, ...]]

_DEFINED_ROWS = 2  # numpy takes a hundred times as long as a runtime
_WATCHED_ROWS = 2


@dataclass(frozen=True, kw_only=True)
class Climb:
    """What is held against what."""

    first: str  # FILE.py:FUNCTION, .onnx or .xml
    second: str  # .onnx or .xml
    data: Path | None = None
    normalisation: Normalisation | None = None
    shapes: Shapes = field(default_factory=dict)
    weights: Path | None = None  # of FILE.py:FUNCTION
    limit: float | None = None  # of an output's scale, in place of the usual ones
    asked: bool = False  # whether the user named the runtimes: then each must take the second model


@dataclass(frozen=True, kw_only=True)
class _Side:
    """A model file, and how its inputs are called."""

    name: str
    model: Model
    signature: Signature  # every dimension known
    rows: dict[str, Artifact]
    shapes: Shapes

    @property
    def precision(self) -> Precision:
        return self.model.precision


@dataclass(kw_only=True)
class _Stand:
    """A rung that was reached: what it gave, and how it can be looked into."""

    rung: Rung
    side: _Side
    runtime: str
    form: Form
    outputs: Arrays | None  # None where it cannot be run


def climb(what: Climb, target: Target) -> Ladder:
    """Hold a model against another, on every runtime of the target, and name the layer where they part.

    Raises:
        UsageError: there is no such model, or the request contradicts itself.
        ModelError: a file is malformed or hostile, the models take different inputs, or no runtime takes the second.
        DataError: the data do not fit the inputs.
        BackendMissing: none of the runtimes works on the device.

    """
    with connect(target) as device, Workshop() as workshop, TemporaryDirectory(prefix="edgekd-") as name:
        return _Ladder(what, target, device, workshop, Path(name)).climb()


class _Ladder:
    """One climb."""

    def __init__(
        self, what: Climb, target: Target, device: Device, workshop: Workshop, scratch: Path
    ) -> None:
        self._what, self._target, self._device = what, target, device
        self._workshop, self._scratch = workshop, scratch
        self._module = _module(what)
        self._rules = Rules(limit=what.limit, real=what.data is not None)
        self._rungs: list[Rung] = []
        self._stands: list[_Stand] = []
        self._looked: set[tuple[str, str, str]] = set()  # pairs of files, or files and runtimes
        self._explained: set[tuple[str, str, str]] = set()

    def climb(self) -> Ladder:
        """Go from rung to rung."""
        paths = [Path(one) for one in (self._what.first, self._what.second)]
        files = paths[1:] if self._module is not None else paths
        sides = self._sides(files)
        problems = [] if self._what.data is not None else [RANDOM_INPUTS]
        runtimes = self._runtimes(problems)
        top: Arrays | None = None
        program: Program | None = None
        if self._module is not None:
            top, program = self._torch(self._module, sides[0])
        for side in sides:
            for runtime in (DEFINITION, *runtimes):
                self._step(side, runtime, top, program)
        self._refuse_nothing(sides[-1])
        return Ladder(
            models=(self._what.first, self._what.second),
            rungs=tuple(self._rungs),
            real=self._what.data is not None,
            problems=tuple(problems),
            sha256={side.name: side.model.file.sha256 for side in sides},
        )

    def _sides(self, paths: list[Path]) -> list[_Side]:
        """Look at the files, settle what they take, and gather inputs for the first."""
        found = [(path, *inspected(self._device, path)) for path in paths]
        settled = [check_shapes(signature, self._shapes(signature)) for _, _, signature in found]
        specs = settled[0].inputs
        rows = gather(self._scratch / "inputs", settled[0], self._what.data, self._what.normalisation)
        sides = []
        for (path, model, _), signature in zip(found, settled):
            names = matched(specs, signature.inputs, paths)
            sides.append(
                _Side(
                    name=str(path),
                    model=model,
                    signature=signature,
                    rows={own: rows[name] for own, name in names.items()},
                    shapes={spec.name: tuple(size or 1 for size in spec.shape) for spec in signature.inputs},
                )
            )
        return sides

    def _shapes(self, signature: Signature) -> Shapes:
        """Return the shapes that were given, by the names of this file."""
        names = {spec.name for spec in signature.inputs}
        given = self._what.shapes
        if given and not names & given.keys() and len(given) == len(signature.inputs):
            return {spec.name: shape for spec, shape in zip(signature.inputs, given.values())}
        return given

    def _runtimes(self, problems: list[str]) -> list[str]:
        health = {one.name: one for one in self._device.probe().runtimes}
        working = [name for name in self._target.runtimes if name in health and health[name].works]
        problems += [
            f"{name} does not work here: {health[name].problem if name in health else 'it did not answer'}"
            for name in self._target.runtimes
            if name not in working
        ]
        if not working:
            raise BackendMissing("none of the runtimes works on the device", cause="; ".join(problems))
        return working

    def _torch(self, module: nn.Module, side: _Side) -> tuple[Arrays, Program | None]:
        """Run the live module and its exported program."""
        from edgekd.stages import torch_forms

        rows = torch_forms.rows_of({name: file.verified() for name, file in side.rows.items()})
        log.info("running %s in torch", self._what.first)
        names = [spec.name for spec in side.signature.outputs]
        live = torch_forms.answers(module, rows)
        if len(live) != len(names):
            raise ModelError(f"the module gives {len(live)} tensors, and {side.name} {len(names)}")
        top = dict(zip(names, live))
        name = f"{self._what.first} in torch"
        self._rungs.append(Rung(name=name, samples=len(live[0])))
        try:
            program = torch_forms.exported(module, rows, watched=_WATCHED_ROWS)
        except ModelError as error:
            self._rungs.append(Rung(name="exported program", against=name, problem=_words(error)))
            return top, None
        rung = judged("exported program", name, match(top, program.outputs), Precision.FP32, self._rules)
        if rung.passed is False:
            blame = torch_forms.first_bad_module(module, rows, program, limit=LAYER_LIMITS[Precision.FP32])
            rung = replace(rung, blames=(blame,) if blame else (), layers=len(program.seen))
        self._rungs.append(rung)
        return top, program

    def _step(self, side: _Side, runtime: str, top: Arrays | None, program: Program | None) -> None:
        """Run one file on one runtime, and hold it against the rung it should equal."""
        name = f"{side.name} {'by definition (numpy)' if runtime == DEFINITION else 'on ' + runtime}"
        if runtime == DEFINITION and side.model.file.path.suffix != ".onnx":
            return
        log.info("running %s", name)
        form = self._form(name, side, runtime)
        few = runtime == DEFINITION
        rows = self._first(side) if few else side.rows
        try:
            outputs = form.run(side.model, rows, self._scratch / f"rung{len(self._rungs)}")
        except (ModelError, DeviceError, ResourcesExhausted) as error:
            self._rungs.append(self._unreached(name, runtime, error))
            return
        stand = _Stand(
            rung=Rung(name=name, samples=rows_in(outputs)),
            side=side,
            runtime=runtime,
            form=form,
            outputs=outputs,
        )
        below = self._below(side, runtime)
        if top is not None:
            stand.rung = self._against_torch(stand, top, program)
        elif below is not None:
            stand.rung = self._compared(stand, below)
        self._rungs.append(stand.rung)
        self._stands.append(stand)

    def _below(self, side: _Side, runtime: str) -> _Stand | None:
        """Return what a rung is held against: the first model on the same runtime, else the rung before it."""
        others = [one for one in self._stands if one.side is not side]
        same = [one for one in others if one.runtime == runtime]
        own = [one for one in self._stands if one.side is side]
        if same:
            return same[0]
        return own[-1] if own else (others[-1] if others else None)

    def _compared(self, stand: _Stand, below: _Stand) -> Rung:
        assert stand.outputs is not None and below.outputs is not None  # noqa: S101, PT018 - both were run
        precision = max(stand.side.precision, below.side.precision, key=COARSER.index)
        wanted, found = alike(below.outputs, stand.outputs)
        rung = judged(stand.rung.name, below.rung.name, match(wanted, found), precision, self._rules)
        # Roundings hide a broken layer: what is coarser than fp32 is looked into even where its outputs hold.
        files = stand.side is not below.side
        key = (below.side.name, stand.side.name, "" if files else stand.runtime)
        hidden = files and precision is not Precision.FP32 and key not in self._looked
        if key in self._explained or not (rung.passed is False or hidden):
            return rung
        self._looked.add(key)
        log.info("looking for the first layer at which %s departs", stand.rung.name)
        worst, place = worst_rows(wanted, found)[:_WATCHED_ROWS], self._scratch / f"inside{len(self._rungs)}"
        found_inside = first_bad(
            self._workshop,
            below.form,
            stand.form,
            {
                name: rows_at(one.side.rows, worst, place / f"{name}-rows")
                for name, one in (("reference", below), ("other", stand))
            },
            place,
            limit=LAYER_LIMITS[precision],
        )
        if any(one.stands_out for one in found_inside.blames):
            self._explained.add(key)
        return self._with(rung, found_inside)

    def _against_torch(self, stand: _Stand, top: Arrays, program: Program | None) -> Rung:
        assert stand.outputs is not None  # noqa: S101 - it was run
        precision = stand.side.precision
        wanted, found = alike(top, stand.outputs)
        rung = judged(stand.rung.name, self._rungs[0].name, match(wanted, found), precision, self._rules)
        if program is None or (rung.passed is not False and precision is Precision.FP32):
            return rung
        rows = rows_at(stand.side.rows, range(_WATCHED_ROWS), self._scratch / "watched")
        try:
            layers = self._workshop.graph(stand.side.model, stand.side.shapes).layers
            inside = held_against(
                self._workshop,
                program.seen,
                stand.form,
                rows,
                self._scratch / f"inside{len(self._rungs)}",
                limit=LAYER_LIMITS[precision],
                layers=layers,
            )
        except EdgekdError as error:
            inside = Found(problem=_words(error))
        return self._with(rung, inside)

    def _with(self, rung: Rung, inside: Found) -> Rung:
        blames = inside.blames
        if self._module is not None:
            from edgekd.stages.torch_forms import traced_to

            blames = traced_to(blames, self._module)
        broken = any(one.stands_out for one in blames)
        if rung.passed is not False and not broken:
            blames = ()
        return replace(
            rung,
            blames=blames,
            layers=inside.layers,
            inside=inside.problem,
            passed=False if broken else rung.passed,
        )

    def _form(self, name: str, side: _Side, runtime: str) -> Form:
        run: Run = self._workshop.define
        if runtime != DEFINITION:
            fixed = side.precision is Precision.INT8 or runtime in TYPED
            engine = Engine(
                model=side.model,
                runtime=runtime,
                precision=side.precision if fixed else Precision.FP32,
                threads=self._target.threads,
                shapes=side.shapes,
            )
            run = on_device(self._device, engine)
        return Form(name=name, model=side.model, run=run, shapes=side.shapes)

    def _first(self, side: _Side) -> Rows:
        at = self._scratch / f"few-{side.model.file.sha256[:8]}"
        return rows_at(side.rows, range(_DEFINED_ROWS), at)

    def _unreached(self, name: str, runtime: str, error: EdgekdError) -> Rung:
        """Say why a rung could not be reached; that is a fault only where the user named the runtime."""
        missing = isinstance(error, BackendMissing)
        fault = self._what.asked and runtime != DEFINITION and not missing
        return Rung(name=name, passed=False if fault else None, problem=_words(error))

    def _refuse_nothing(self, last: _Side) -> None:
        """Refuse to give a verdict where nothing was compared."""
        reached = {one.side.name for one in self._stands}
        if last.name not in reached:
            problems = "; ".join(f"{one.name}: {one.problem}" for one in self._rungs if one.problem)
            raise BuildError(f"no runtime here can run {last.name}", cause=problems[:2000])
        if not any(rung.against and rung.error is not None for rung in self._rungs):
            problems = "; ".join(f"{one.name}: {one.problem}" for one in self._rungs if one.problem)
            raise BuildError("there is nothing to hold the second model against", cause=problems[:2000])


def _module(what: Climb) -> nn.Module | None:
    name, colon, _ = what.first.rpartition(":")
    if not colon or not (name.endswith(".py") or name == "timm"):
        if what.weights is not None:
            raise UsageError(f"{what.first} holds its own weights", mend="leave --weights out")
        return None
    if name.endswith(".py") and not Path(name).is_file():
        raise UsageError(f"there is no {name}", mend="give FILE.py:FUNCTION, an .onnx or an .xml")
    from edgekd.distillation.teachers import module_from

    return module_from(what.first, what.weights, beside=Path())


def _words(error: EdgekdError) -> str:
    return " ".join(f"{error.what}: {error.cause}".split()).rstrip(": ")[:500]
