"""The verb that says whether files still compute what they should: a bundle's, or one model's against another's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import (
    AsJson,
    DeviceName,
    Mean,
    ProfileName,
    Quiet,
    Runtimes,
    Shapes,
    Std,
    Threads,
    Verbose,
    Wait,
    normalisation_from,
    shapes_from,
    target_from_options,
)
from edgekd.cli.progress import progress
from edgekd.cli.show import show, show_json
from edgekd.errors import UsageError
from edgekd.values.target import Target

VERIFY = """\
  [cyan]edgekd verify runs/digits/bundle[/cyan]
  [cyan]edgekd verify float.onnx int8.onnx --data images/[/cyan]
  [cyan]edgekd verify before.onnx after.onnx --runtime openvino --json[/cyan]
  [cyan]edgekd verify models.py:resnet56 model.onnx --weights w.safetensors --data inputs.npz[/cyan]
  [cyan]edgekd verify model.onnx model.onnx --target pi[/cyan]       does the board compute the same?
"""

_TWO = "Two models"

First = Annotated[
    str,
    typer.Argument(metavar="BUNDLE|MODEL_A", help="A bundle; or an .onnx, an .xml or FILE.py:FUNCTION."),
]
Second = Annotated[
    Path | None,
    typer.Argument(
        metavar="[MODEL_B]", help="The .onnx or .xml that is to compute the same.", show_default=False
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Real inputs: a folder of images, or an .npz with an array an input; random ones unless given.",
        show_default=False,
        rich_help_panel=_TWO,
    ),
]
Limit = Annotated[
    float | None,
    typer.Option(
        "--limit",
        metavar="SHARE",
        min=0.0,
        help="What an output may depart by, as a share of its largest value;"
        " 1e-5 in fp32, 0.05 in fp16 and a fifth of the labels in int8 unless given.",
        show_default=False,
        rich_help_panel=_TWO,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=".safetensors or a state dict, for FILE.py:FUNCTION.",
        show_default=False,
        rich_help_panel=_TWO,
    ),
]


def verify(
    first: First,
    second: Second = None,
    *,
    data: Data = None,
    mean: Mean = None,
    std: Std = None,
    shape: Shapes = None,
    limit: Limit = None,
    weights: Weights = None,
    runtime: Runtimes = None,
    threads: Threads = None,
    profile_name: ProfileName = None,
    device: DeviceName = None,
    wait: Wait = 0.0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check a bundle, or hold a model against another down to the first layer at which they part.

    A bundle: every digest, every model, and that each still computes what it did. Two models, whoever wrote them: both by
    ONNX's own definitions and on every runtime, each rung held against the one it should equal.

    Exit code 6: a file of the bundle is not what its manifest says. Exit code 1: something computes something else.
    """
    target = target_from_options(profile_name, runtime, threads, device, wait)
    if second is None:
        given = (data, mean, std, shape, limit, weights, runtime)
        _verify_bundle(first, target, lone=any(given), as_json=as_json, quiet=quiet, verbose=verbose)
    shapes, normalisation = shapes_from(shape), normalisation_from(mean, std)
    with progress(quiet=quiet, verbose=verbose):
        from edgekd import pipeline

        found = pipeline.ladder(
            first,
            str(second),
            target=target,
            data=data,
            normalisation=normalisation,
            shapes=shapes,
            weights=weights,
            limit=limit,
            asked=runtime is not None,
        )
    from edgekd.cli import ladder_tables

    if as_json:
        show_json(ladder_tables.climbed_json(found))
    else:
        show(found, ladder_tables.climbed, as_json=False)
    raise typer.Exit(0 if found.passed else 1)


def _verify_bundle(
    first: str, target: Target, *, lone: bool, as_json: bool, quiet: bool, verbose: bool
) -> None:
    folder = Path(first)
    if not folder.is_dir() or lone:
        cause = f"{first} is alone" if folder.exists() or ":" in first else f"there is no {first}"
        mend = "give a bundle's folder alone, or two models: edgekd verify MODEL_A MODEL_B --data DATA"
        raise UsageError("there is nothing to verify", cause=cause, mend=mend)
    with progress(quiet=quiet, verbose=verbose):
        from edgekd import pipeline

        found = pipeline.verify(folder, target)
    from edgekd.cli import tables

    if as_json:
        show_json(tables.with_verdict(found))
    else:
        show(found, tables.verified, as_json=False)
    raise typer.Exit(0 if found.passed else 1)
