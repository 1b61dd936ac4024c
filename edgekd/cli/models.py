"""Verbs about model files: profile, export, quantize, compile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import (
    AsJson,
    DeviceName,
    Mean,
    Out,
    ProfileName,
    Quiet,
    Record,
    Runtimes,
    Shapes,
    Std,
    Threads,
    Tune,
    Verbose,
    Wait,
    choices_from,
    normalisation_from,
    precision_from,
    precisions_from,
    shapes_from,
    target_from_options,
)
from edgekd.cli.progress import progress
from edgekd.cli.show import show, show_json
from edgekd.errors import UsageError

PROFILE = """\
  [cyan]edgekd profile model.onnx[/cyan]
  [cyan]edgekd profile model.onnx --shape images=1x3x224x224 --runtime openvino[/cyan]
  [cyan]edgekd profile bundle/model.onnx --threads 2 --json[/cyan]
  [cyan]edgekd profile model.onnx --target pi[/cyan]          on a board of `edgekd devices`
  [cyan]edgekd profile model.onnx --target orin --tune clocks --energy[/cyan]
  [cyan]edgekd profile model.onnx --runtime onnxruntime --layers[/cyan]
  [cyan]edgekd profile runs/digits/bundle[/cyan]
"""
EXPORT = """\
  [cyan]edgekd export models.py:resnet56 --weights w.safetensors --input images=1x3x32x32 --out exported[/cyan]
  [cyan]edgekd export models.py:resnet56 --weights w.safetensors --input images=1x3x32x32 \\
         --to onnx,openvino --precision fp32,int8 --calibrate images/ --out exported[/cyan]
"""
COMPILE = """\
  [cyan]edgekd compile model.onnx --runtime openvino --precision bf16 --out compiled[/cyan]
"""

_FORMATS = ("onnx", "openvino", "tensorrt")

Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="An .onnx file, or an OpenVINO .xml with its .bin.")
]
Runtime = Annotated[
    str,
    typer.Option("--runtime", metavar="NAME", help="onnxruntime or openvino.", rich_help_panel="The target"),
]
Calibrate = Annotated[
    Path | None,
    typer.Option(
        "--calibrate",
        metavar="DATA",
        help="Real inputs for int8: a folder of images, or an .npz with an array an input.",
        show_default=False,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help=".safetensors or a state dict, for FILE.py:FUNCTION.", show_default=False
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=1x3x32x32",
        help="Name and shape of an input; once an input.",
        show_default=False,
    ),
]


WithEnergy = Annotated[
    bool,
    typer.Option(
        "--energy",
        help="What an inference costs above the idle device, in passes of its own (half a minute each);"
        " where the device has a meter.",
    ),
]
WithLayers = Annotated[
    bool, typer.Option("--layers", help="Which layers take the time, by the runtime's own profiler.")
]


def profile(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="An .onnx file, an OpenVINO .xml with its .bin, or a bundle's folder."
        ),
    ],
    *,
    shape: Shapes = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="fp32, bf16, fp16 or int8; all float ones of the profile unless given.",
            show_default=False,
            rich_help_panel="The target",
        ),
    ] = None,
    energy: WithEnergy = False,
    layers: WithLayers = False,
    runtime: Runtimes = None,
    threads: Threads = None,
    profile_name: ProfileName = None,
    device: DeviceName = None,
    wait: Wait = 0.0,
    tune: Tune = "",
    record: Record = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure a model's latency, with bounds and how far to trust them.

    Needs no training and no job. Each runtime gets fresh processes in turns, so that drift favours none.
    Of a bundle it is the accepted file, with its runtime and threads, and where the time of a request goes.
    """
    if threads is not None and model.is_dir():
        raise UsageError(f"{model} is measured as it ships", mend="leave --threads out")
    shapes, precisions = shapes_from(shape), precisions_from(precision)
    target = target_from_options(profile_name, runtime, threads, device, wait, record=record, tune=tune)
    with progress(quiet=quiet, verbose=verbose):
        from edgekd import pipeline

        profiled = pipeline.profile(
            model, target, shapes=shapes, precisions=precisions, energy=energy, layers=layers
        )
    from edgekd.cli import profile_tables

    if as_json:
        show_json(profile_tables.profiled_json(profiled))
    else:
        show(profiled, profile_tables.profiled, as_json=False)


def export(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="FILE.py:FUNCTION, an .onnx file or a bundle.")
    ],
    *,
    weights: Weights = None,
    inputs: Inputs = None,
    to: Annotated[str, typer.Option(metavar="A,B", help="Formats: onnx, openvino.")] = "onnx",
    precision: Annotated[str, typer.Option(metavar="A,B", help="fp32, int8.")] = "fp32",
    calibrate: Calibrate = None,
    mean: Mean = None,
    std: Std = None,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Leave the batch size open.")
    ] = False,
    opset: Annotated[
        int | None, typer.Option(help="ONNX opset; what suits the target unless given.", show_default=False)
    ] = None,
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
    """Export any model: every file checked against the source, measured and digested.

    DIR is exported/ unless given; DIR/manifest.json says what is in it. Exit code 1: an fp32 file departs from the source.
    """
    shapes, precisions = shapes_from(inputs, "--input"), precisions_from(precision)
    formats = choices_from(to, _FORMATS, "--to")
    normalisation = normalisation_from(mean, std)
    target = target_from_options(profile_name, None, threads, device, wait, tune=tune)
    with progress(quiet=quiet, verbose=verbose):
        from edgekd import pipeline

        exported = pipeline.export(
            source,
            weights=weights,
            inputs=shapes,
            to=formats,
            precisions=precisions,
            calibrate=calibrate,
            normalisation=normalisation,
            out=out or Path("exported"),
            dynamic_batch=dynamic_batch,
            opset=opset,
            target=target,
        )
    from edgekd.cli import tables

    if as_json:
        show_json(tables.with_verdict(exported))
    else:
        show(exported, tables.exported, as_json=False)
    raise typer.Exit(0 if exported.passed else 1)


def compile_(
    model: Model,
    *,
    runtime: Runtime,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="fp32, bf16, fp16 or int8.", rich_help_panel="The target")
    ] = "fp32",
    shape: Shapes = None,
    threads: Threads = None,
    profile_name: ProfileName = None,
    device: DeviceName = None,
    wait: Wait = 0.0,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compile a model for a runtime on this device, and run it once.

    DIR is compiled/ unless given.
    """
    wanted = precision_from(precision)
    target = target_from_options(profile_name, runtime, threads, device, wait)
    with progress(quiet=quiet, verbose=verbose):
        from edgekd import pipeline

        made = pipeline.compile_(
            model,
            runtime=runtime,
            precision=wanted,
            shapes=shapes_from(shape),
            target=target,
            out=out or Path("compiled"),
        )
    from edgekd.cli import tables

    show(made, tables.compiled, as_json=as_json)
