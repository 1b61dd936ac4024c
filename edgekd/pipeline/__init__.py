"""The verbs: each says in which order the stages happen, and nothing below knows it.

Everything is imported late, so that a verb that needs no torch starts without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.values.bundle import VerifyReport
from edgekd.values.gate import Gate, Question
from edgekd.values.job import Job
from edgekd.values.ladder import Ladder
from edgekd.values.model import Precision
from edgekd.values.outcome import Compiled, Distilled, Exported, Outcome, Plan, Profile, Quantized
from edgekd.values.student import StudentSpec
from edgekd.values.target import Target
from edgekd.values.targets import Outcomes

if TYPE_CHECKING:
    from torch import nn

    from edgekd.tasks.task import Task
    from edgekd.values.preprocess import Normalisation

__all__ = [
    "check", "compile_", "distill", "export", "ladder", "plan", "profile", "quantize", "report", "run", "verify",
]  # fmt: skip


def run(
    job: Job,
    *,
    beside: Path = Path(),
    name: str = "run",
    out: Path | None = None,
    command: str = "",
    teacher: nn.Module | None = None,
    data: Task | None = None,
    cluster: str = "",
    or_here: bool = False,
) -> Outcome:
    """Find, train and deliver the best student that meets the budget on the target.

    Started by torchrun, each student is trained by all of its processes; see `help_to_train`.

    Args:
        job: what is asked for.
        beside: the folder that the job's relative paths start from.
        name: of the run and its bundle.
        out: where store, trials, bundle and report go; by default `runs/NAME`. The same job in the same
            folder goes on where it was interrupted.
        command: that makes this run again, for the report.
        teacher: a live torch module in place of `job.teacher.model`; (B, C, H, W) -> (B, classes).
        data: live data in place of `job.task.data`, from `edgekd.tasks.from_arrays` or `from_dataset`.
        cluster: address of a Ray cluster whose workers train the students, or "local": processes here.
        or_here: train on this machine what a cluster that goes away has left.

    Raises:
        EdgekdError: see `edgekd.errors`; `BudgetError` where no student meets the budget, `DeviceError` where the
            cluster goes away.

    """
    from edgekd.pipeline.company import company

    out = out or Path("runs") / name
    if cluster:
        from edgekd.pipeline.cluster import clustered
        from edgekd.pipeline.targets import close_the_loop_with

        with clustered(
            cluster, job, beside=beside, out=out, or_here=or_here, live=data is not None
        ) as trainer:
            return close_the_loop_with(
                trainer, job, beside=beside, name=name, out=out, command=command, teacher=teacher, data=data
            )
    from edgekd.pipeline.loop import close_the_loop

    with company():
        return close_the_loop(
            job, beside=beside, name=name, out=out, command=command, teacher=teacher, data=data
        )


def run_on_targets(
    jobs: Mapping[str, Job],
    *,
    beside: Path = Path(),
    name: str = "run",
    out: Path | None = None,
    command: str = "",
    teacher: nn.Module | None = None,
    data: Task | None = None,
    cluster: str = "",
    or_here: bool = False,
) -> Outcomes:
    """Find, train and deliver the best student for each of several targets, with trainings that serve all of them.

    Args:
        jobs: by the target's name; they may differ in `[target]` and `[budget]`.
        beside: see `run`, as for all below.
        name: of the run.
        out: the folder of the run; each target has one of its name within.
        command: that makes this run again.
        teacher: a live torch module.
        data: live data.
        cluster: whose workers train.
        or_here: train here what a cluster that goes away has left.

    Raises:
        EdgekdError: what is wrong for every target. A target that has no student is an outcome, with why.

    """
    from edgekd.pipeline.company import company
    from edgekd.pipeline.targets import close_the_loops

    out = out or Path("runs") / name
    if cluster:
        from edgekd.pipeline.cluster import clustered

        job = next(iter(jobs.values()))
        with clustered(
            cluster, job, beside=beside, out=out, or_here=or_here, live=data is not None
        ) as trainer:
            return close_the_loops(
                jobs,
                beside=beside,
                name=name,
                out=out,
                command=command,
                teacher=teacher,
                data=data,
                trainer=trainer,
            )
    with company():
        return close_the_loops(
            jobs, beside=beside, name=name, out=out, command=command, teacher=teacher, data=data
        )


def help_to_train(job: Job, *, beside: Path = Path(), name: str = "run", out: Path | None = None) -> int:
    """Train with the process that leads, where torchrun started this one to help; return how many students.

    Call it instead of `run` or `distill`, with the same job, where the environment's RANK is not 0; the command line
    does.
    """
    from edgekd.pipeline.company import help_to_train as take_part

    return take_part(job, beside=beside, out=out or Path("runs") / name)


def plan(job: Job, *, beside: Path = Path(), name: str = "run", out: Path | None = None) -> Plan:
    """Say what the device can do with the budget, with nothing trained."""
    from edgekd.pipeline.planning import make_plan

    return make_plan(job, beside=beside, name=name, out=out or Path("runs") / name)


def profile(
    model: Path,
    target: Target,
    *,
    precisions: Sequence[Precision] = (),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    energy: bool = False,
    layers: bool = False,
) -> Profile:
    """Measure any model file on every runtime of the target that can read it, or a bundle as it ships.

    Args:
        model: .onnx, .xml with its .bin, or a bundle's folder: its accepted deployment on its own runtime and
            threads, with a ledger of where the time of a request goes.
        target: the device and its runtimes; threads for a model file.
        precisions: of a model file's float layers; none: all float ones that the profile lists.
        shapes: of a model file's inputs with dynamic dimensions.
        energy: measure what an inference costs as well.
        layers: list what each runtime makes of the model as well, layer by layer.

    Raises:
        EdgekdError: see `edgekd.errors`; `DeviceError` where energy is asked for and the device has no meter,
            `IntegrityError` where a bundle is not what its manifest says.

    """
    from edgekd.pipeline import profiling, single

    measure = profiling.profile_bundle if model.is_dir() else single.profile
    found = measure(model, target, precisions=precisions, shapes=shapes, energy=energy)
    if not layers:
        return found
    runtimes = dict.fromkeys(one.runtime for one in found.results if one.latency_ms is not None)
    tables = tuple(profiling.layer_table(model, target, runtime=name, shapes=shapes) for name in runtimes)
    return replace(found, layers=tables)


def export(
    source: str | Path | nn.Module,
    *,
    target: Target,
    out: Path,
    weights: Path | None = None,
    inputs: Mapping[str, tuple[int, ...]] | None = None,
    to: Sequence[str] = ("onnx",),
    precisions: Sequence[Precision] = (Precision.FP32,),
    calibrate: Path | None = None,
    normalisation: Normalisation | None = None,
    dynamic_batch: bool = False,
    opset: int | None = None,
) -> Exported:
    """Export any model, each file checked against the source, measured and digested.

    Args:
        source: FILE.py:FUNCTION or timm:NAME, an .onnx file, a bundle, or a live torch module.
        target: where the files are measured.
        out: the folder of the files and of manifest.json.
        weights: a state dict for FILE.py:FUNCTION.
        inputs: names and whole shapes; needed for a torch module, and for dynamic dimensions of an .onnx.
        to: "onnx", "openvino".
        precisions: fp32, int8. An int8 file that is not faster than its float parent is left out.
        calibrate: real inputs: a folder of images, an .npz or an .npy. None: random ones, or a bundle's own.
        normalisation: of those images; None: pixels in [0, 1], or what the bundle says.
        dynamic_batch: leave the batch size open.
        opset: of the ONNX operators; None: 18 for a torch module, the file's own for an .onnx.

    Raises:
        EdgekdError: see `edgekd.errors`.

    """
    from edgekd.pipeline.exporting import export_model
    from edgekd.pipeline.origin import Request

    request = Request(
        source=source,
        weights=weights,
        inputs=dict(inputs or {}),
        to=tuple(to),
        precisions=tuple(precisions),
        calibrate=calibrate,
        normalisation=normalisation,
        dynamic_batch=dynamic_batch,
        opset=opset,
    )
    return export_model(request, target, out)


def quantize(
    model: Path,
    *,
    target: Target,
    out: Path,
    calibrate: Path | None = None,
    data: str = "",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    normalisation: Normalisation | None = None,
    seconds: float | None = None,
    anyway: bool = False,
) -> Quantized:
    """Try the precisions and quantisers of each runtime of the target, and ship the fastest file that loses nothing.

    Args:
        model: a float .onnx, or an .xml with its .bin beside it.
        target: the device, its runtimes and threads.
        out: for the file to ship, the float file, and what a second call goes on from.
        calibrate: real inputs; None: random ones, which show the speed alone.
        data: labelled images to judge by.
        shapes: of inputs with dynamic dimensions; 1 where none is given.
        normalisation: of images; None: pixels in [0, 1].
        seconds: after which nothing new is begun; None: five minutes.
        anyway: ship the fastest int8 file whatever it loses.

    """
    from edgekd.pipeline.quantizing import SECONDS, Wish, quantize_model

    wish = Wish(
        path=model,
        calibrate=calibrate,
        data=data,
        shapes=shapes or {},
        normalisation=normalisation,
        seconds=SECONDS if seconds is None else seconds,
        anyway=anyway,
    )
    return quantize_model(wish, target, out)


def compile_(
    model: Path,
    *,
    runtime: str,
    target: Target,
    out: Path,
    precision: Precision = Precision.FP32,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Compiled:
    """Write what a runtime makes of a model, and run it once beside the original."""
    from edgekd.pipeline.single import compile_model

    return compile_model(model, target, runtime=runtime, precision=precision, shapes=shapes, out=out)


def verify(bundle: Path, target: Target) -> VerifyReport:
    """Check a bundle on the target: every digest, and that every file still computes what it did."""
    from edgekd.pipeline.single import verify_folder

    return verify_folder(bundle, target)


def ladder(
    first: str,
    second: str,
    *,
    target: Target,
    data: Path | None = None,
    normalisation: Normalisation | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    weights: Path | None = None,
    limit: float | None = None,
    asked: bool = False,
) -> Ladder:
    """Hold a model against another on every runtime of the target, down to the first layer at which they part.

    Args:
        first: what is right: an .onnx, an .xml or FILE.py:FUNCTION.
        second: the .onnx or .xml that is to compute the same.
        target: the device and its runtimes.
        data: real inputs: a folder of images, an .npz or an .npy. None: random ones.
        normalisation: of those images; None: pixels in [0, 1].
        shapes: of inputs with dynamic dimensions.
        weights: a state dict for FILE.py:FUNCTION.
        limit: what an output may depart by, as a share of its largest value; None: by the models' precisions.
        asked: the runtimes were chosen, so that one which refuses the second model is a fault.

    Raises:
        EdgekdError: see `edgekd.errors`.

    """
    from edgekd.pipeline.climbing import Climb, climb

    what = Climb(
        first=first,
        second=second,
        data=data,
        normalisation=normalisation,
        shapes=dict(shapes or {}),
        weights=weights,
        limit=limit,
        asked=asked,
    )
    return climb(what, target)


def check(
    question: Question,
    target: Target,
    *,
    out: Path,
    history: Path | None = None,
    summary: Path | None = None,
) -> Gate:
    """Say whether candidates are slower than their bases, here and now; reports go into `out`."""
    from datetime import datetime, timezone

    from edgekd.pipeline import checking

    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return checking.check(question, target, out=out, history=history, summary=summary, date=date)


def distill(
    job: Job,
    *,
    beside: Path = Path(),
    name: str = "run",
    spec: StudentSpec | None = None,
    out: Path | None = None,
) -> Distilled:
    """Train one student to match the job's teacher; without a spec, the one that the search finds most promising."""
    from edgekd.pipeline.company import company
    from edgekd.pipeline.distilling import distill_one

    with company():
        return distill_one(job, beside=beside, name=name, spec=spec, out=out or Path("runs") / name)


def report(folder: Path) -> Path:
    """Write the report of a run again."""
    from edgekd.pipeline.record import report_again

    return report_again(folder)


def export_study(folder: Path, storage: str) -> int:
    """Write the trials of a run as a study in Optuna's storage, such as "sqlite:///study.db"; return how many."""
    from edgekd.pipeline.record import study_of

    return study_of(folder, storage)
