"""The verb that makes a model int8 where that gains, and how its answer is laid out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekd.cli.options import (
    AsJson,
    DeviceName,
    Mean,
    Out,
    ProfileName,
    Quiet,
    Runtimes,
    Shapes,
    Std,
    Threads,
    Tune,
    Verbose,
    Wait,
    normalisation_from,
    shapes_from,
    target_from_options,
)
from edgekd.cli.progress import progress
from edgekd.cli.show import show

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgekd.values.outcome import Quantized
    from edgekd.values.variant import Exchange, Loss, Variant

QUANTIZE = """\
  [cyan]edgekd quantize model.onnx --calibrate images/ --out int8[/cyan]
  [cyan]edgekd quantize model.onnx --calibrate images/ --data labelled/ --seconds 600[/cyan]
  [cyan]edgekd quantize model.onnx --calibrate rows.npz --target orin --runtime tensorrt[/cyan]
"""
_SHOWN = 8  # segments that are blamed by name


Calibrate = Annotated[
    Path | None,
    typer.Option(
        "--calibrate",
        metavar="DATA",
        help="Real inputs: a folder of images, an .npz with an array an input, or an .npy.",
        show_default=False,
    ),
]
Labelled = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Labelled images to judge the accuracy by: class folders, an .npz or a built-in name; images of a"
        " split called test are left alone.",
        show_default=False,
    ),
]
Seconds = Annotated[float, typer.Option(metavar="N", min=1.0, help="After which nothing new is begun.")]
Anyway = Annotated[bool, typer.Option("--anyway", help="Ship the fastest int8 file, whatever it loses.")]


def quantize(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="An .onnx file, or an OpenVINO .xml with its .bin.")
    ],
    *,
    calibrate: Calibrate = None,
    data: Labelled = "",
    seconds: Seconds = 300.0,
    anyway: Anyway = False,
    mean: Mean = None,
    std: Std = None,
    shape: Shapes = None,
    runtime: Runtimes = None,
    threads: Threads = None,
    profile_name: ProfileName = None,
    device: DeviceName = None,
    wait: Wait = 0.0,
    tune: Tune = "",
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a model int8 where that is faster and loses nothing; say why where it is not.

    Each runtime's precisions and quantisers are tried, measured and judged as compiled files. Layers that are slower
    in int8, or that cost the accuracy, go back to float. The float file is always delivered beside.

    DIR is quantized/ unless given; the same command goes on from what is in it. Without --calibrate, random inputs show
    the speed and not the accuracy, and no int8 file ships.
    """
    shapes, normalisation = shapes_from(shape), normalisation_from(mean, std)
    target = target_from_options(profile_name, runtime, threads, device, wait, tune=tune)
    with progress(quiet=quiet, verbose=verbose):
        from edgekd import pipeline

        made = pipeline.quantize(
            model,
            target=target,
            calibrate=calibrate,
            data=data,
            shapes=shapes,
            normalisation=normalisation,
            seconds=seconds,
            anyway=anyway,
            out=out or Path("quantized"),
        )
    show(made, laid_out, as_json=as_json)


def laid_out(found: Quantized) -> RenderableType:
    """Lay out what was tried, what was blamed and repaired, and what ships."""
    from rich.console import Group
    from rich.text import Text

    from edgekd.cli import layout, tables

    table = layout.table("tried", "form", "p50 ms", "fp32 ms", "times", "lost", "")
    for one in found.variants:
        table.add_row(
            one.name, _ms(one.p50_ms), _ms(one.parent_ms), _times(one), _lost(one.loss), one.why, style=""
        )
    own, parent = found.latency_ms, found.parent_latency_ms
    ships = f"{found.runtime}/{found.precision.value}"
    ships += f", {found.quantization.name}" if found.quantization else ""
    rows = [
        ("ships", ships),
        *((("why not int8", found.why),) if found.why else ()),
        *(("file", f"{path}  sha256 {sha256[:16]}…") for path, sha256 in found.files.items()),
        *(("float", path) for path in found.float_files if path not in found.files),
        ("size", f"{found.size_bytes / 1e6:.3f} MB; fp32 {found.parent_size_bytes / 1e6:.3f} MB"),
        ("latency", f"p50 {own.p50:.3f} ms, p99 {own.p99:.3f} ms"),
        ("in fp32", f"p50 {parent.p50:.3f} ms, p99 {parent.p99:.3f} ms: {found.speedup:.2f}x as fast now"),
        ("lost", _lost(found.loss) or "nothing: it is the float file"),
        *(("slower in int8", text) for text in _blamed(found)),
        *((("repaired", _repaired(found.exchange)),) if found.exchange else ()),
    ]
    problems = [Text(f"  warning: {problem}", style="yellow") for problem in found.problems]
    return Group(table, layout.pairs(rows), *problems, *tables.trust([("what ships", own), ("fp32", parent)]))


def _repaired(one: Exchange) -> str:
    from edgekd.stages.report_forms import exchanged

    return f"{exchanged(one)} ({', '.join(one.kept[:_SHOWN])})"


def _blamed(found: Quantized) -> list[str]:
    texts = [
        f"{one.segment}: {one.why} ({one.float_ms:.3f} to {one.int8_ms:.3f} ms in the profile)"
        for one in found.blamed[:_SHOWN]
    ]
    left = len(found.blamed) - _SHOWN
    return [*texts, *([f"and {left} more"] if left > 0 else [])]


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _times(one: Variant) -> str:
    return "" if one.p50_ms is None or one.parent_ms is None else f"{one.p50_ms / one.parent_ms:.2f}"


def _lost(loss: Loss | None) -> str:
    if loss is None:
        return ""
    parts = [] if loss.drop is None else [f"{100 * loss.drop:+.2f} points"]
    parts += [] if loss.changed is None else [f"{loss.changed:.1%} of labels"]
    return ", ".join(parts or [f"{loss.divergence:.1e} of the signal"])
