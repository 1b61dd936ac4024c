"""Measure a bundle as it ships, and where the time goes: of a request by its parts, of an inference by its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from edgekd.devices import connect
from edgekd.errors import UsageError
from edgekd.pipeline.single import check_meter, measured, timed, with_energy
from edgekd.stages.bundle import read_manifest
from edgekd.stages.itemise import itemise
from edgekd.stages.subject import is_bundle, subject
from edgekd.values.latency import Protocol
from edgekd.values.layer import LayerTable
from edgekd.values.model import Precision
from edgekd.values.outcome import Profile
from edgekd.values.target import Target

PASSES = 50
_MOST_PASSES = 1000


def profile_bundle(
    folder: Path,
    target: Target,
    *,
    precisions: Sequence[Precision] = (),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    protocol: Protocol | None = None,
    energy: bool = False,
) -> Profile:
    """Measure a bundle's accepted deployment on its own runtime and threads, with the ledger of a request for a label.

    Args:
        folder: the bundle.
        target: the device; where it names fewer runtimes than its profile, the first deployment for one of them
            is measured instead.
        precisions: none may be given: a deployment fixes its own.
        shapes: none may be given: the pre-processing fixes them.
        protocol: how long and how often; None: as for a model file.
        energy: measure what an inference costs as well.

    Raises:
        DeviceError: energy is asked for and the device has no meter that can be read.
        UsageError: the folder is no bundle, it holds nothing for the runtime, or a precision or a shape is given.
        IntegrityError: a file is not what the manifest says.
        ModelError: the runtime refuses the model, or it does not take what the pre-processing makes.
        BackendMissing: the runtime is not installed on the device.

    """
    if precisions or shapes:
        mend = "leave --precision and --shape out, or give the model file inside"
        raise UsageError(f"{folder} is measured as it ships", mend=mend)
    with connect(target) as device, TemporaryDirectory(prefix="edgekd-") as scratch:
        found = subject(device, folder, target, runtime=_narrowed(folder, target))
        if energy:
            check_meter(device, found.engine.runtime)
        labels = read_manifest(folder).task == "classification"  # requests from pixels to a label have parts
        ledger = itemise(folder, found.engine, device, Path(scratch)) if labels else None
        results = measured(device, [found.engine], protocol)
        (result,) = with_energy(device, [found.engine], results) if energy else results
    return Profile(signature=found.signature, results=(replace(result, ledger=ledger),))


def layer_table(
    model_path: Path,
    target: Target,
    *,
    passes: int = PASSES,
    runtime: str = "",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    protocol: Protocol | None = None,
) -> LayerTable:
    """List the layers that a runtime makes of a file, with what each takes, and time the file itself beside them.

    Args:
        model_path: an .onnx, an .xml with its .bin beside it, or a bundle, whose accepted deployment is looked at.
        target: the device, its runtimes and threads.
        passes: profiled inferences, 1 to 1,000.
        runtime: empty: a bundle's own, or the first of the target that works and reads the file.
        shapes: of inputs with dynamic dimensions; 1 where none is given.
        protocol: of the file's own latency; None: as `edgekd profile` measures.

    Raises:
        UsageError: there is no such file, or so many passes cannot be made.
        ModelError: the file is malformed or hostile, or the runtime refuses it or says nothing of layers.
        IntegrityError: a bundle's file is not what its manifest says.
        BackendMissing: the runtime does not work on the device.

    """
    if not 1 <= passes <= _MOST_PASSES:
        raise UsageError(f"{passes} passes cannot be profiled", mend=f"give 1 to {_MOST_PASSES:,}")
    with connect(target) as device:
        engine = subject(device, model_path, target, runtime=runtime, shapes=shapes).engine
        (latency,) = timed(device, [engine], protocol)
        found = device.layers(engine, passes=passes)
    return LayerTable(
        model_sha256=engine.model.file.sha256,
        runtime=engine.runtime,
        precision=engine.precision,
        threads=engine.threads,
        passes=passes,
        layers=found,
        latency=latency,
    )


def _narrowed(folder: Path, target: Target) -> str:
    """Return the runtime that was asked for, one the bundle has if possible; empty where none was."""
    if not is_bundle(folder) or target.runtimes == tuple(target.profile.runtimes):
        return ""
    held = [one.runtime for one in read_manifest(folder).deployments if one.runtime in target.runtimes]
    return (held or list(target.runtimes))[0]
