"""Find out what one side of a comparison is: a model file or a bundle, and how it is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgekd import runner
from edgekd.backends import TYPED
from edgekd.devices import Device
from edgekd.devices.external import external_files
from edgekd.errors import BackendMissing, IntegrityError, ModelError, UsageError
from edgekd.stages.bundle import read_manifest
from edgekd.stages.verify import read_recipe
from edgekd.values.artifact import Artifact
from edgekd.values.model import Engine, Model, Precision, Signature, TensorSpec
from edgekd.values.preprocess import Recipe
from edgekd.values.target import Target

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model as it is run, and what it takes."""

    path: Path
    engine: Engine
    signature: Signature  # every dimension known
    recipe: Recipe | None = None  # a bundle's


def is_bundle(path: Path) -> bool:
    """Say whether a folder is a bundle."""
    return (path / runner.MANIFEST).is_file()


def subject(
    device: Device, path: Path, target: Target, *, runtime: str = "", shapes: Shapes | None = None
) -> Subject:
    """Name what is to be run: a bundle's accepted deployment, or a model file on a runtime of the target.

    Args:
        device: it looks into the file, in a child.
        path: a bundle, an .onnx, or an .xml with its .bin beside it.
        target: threads, and the runtimes to choose from.
        runtime: the one to use; empty: a bundle's own, or the first of the target that works and reads the file.
        shapes: of inputs with dynamic dimensions; 1 where none is given.

    Raises:
        UsageError: there is no such file.
        ModelError: the file is malformed, hostile, or the runtime refuses it.
        IntegrityError: a bundle's file is not what its manifest says.
        BackendMissing: no runtime of the target works.

    """
    made = _shipped(path, runtime) if path.is_dir() else _file(device, path, runtime, target)
    engine = replace(made, shapes=dict(shapes or {}))
    opened = device.build(engine)
    recipe = read_recipe(path) if path.is_dir() else None
    return Subject(path=path, engine=engine, signature=opened.signature, recipe=recipe)


def check_alike(base: Subject, candidate: Subject) -> None:
    """Refuse to compare models that are not asked the same question.

    Raises:
        ModelError: their inputs differ.

    """
    takes = [tuple(sorted(map(_form, one.signature.inputs))) for one in (base, candidate)]
    if takes[0] != takes[1]:
        differing = sorted(set(takes[0]) ^ set(takes[1]))
        raise ModelError(
            f"{base.path} and {candidate.path} take different inputs",
            cause="; ".join(
                f"{'base' if form in takes[0] else 'candidate'} takes {' '.join(form)}" for form in differing
            ),
            mend="compare models of the same inputs; --shape settles dimensions that are left open",
        )


def _form(spec: TensorSpec) -> tuple[str, str, str]:
    return spec.name, spec.dtype, "x".join(map(str, spec.shape)) or "scalar"


def _shipped(folder: Path, runtime: str) -> Engine:
    if not is_bundle(folder):
        raise UsageError(
            f"{folder} is neither a model nor a bundle", mend="give an .onnx, an .xml or a bundle"
        )
    manifest = read_manifest(folder)
    if not manifest.deployments:
        raise IntegrityError(f"{folder} has no accepted deployment", mend="make it again with `edgekd run`")
    deployments = [one for one in manifest.deployments if runtime in {"", one.runtime}]
    if not deployments:
        raise UsageError(
            f"{folder} holds no file for {runtime}",
            mend=f"leave --runtime out: its own is {manifest.accepted.runtime}",
        )
    chosen = deployments[0]
    file, *rest = (_listed(folder, name, manifest.files[name]) for name in chosen.files)
    model = Model(file=file, weights=rest[0] if rest else None, precision=chosen.precision)
    return Engine(model=model, runtime=chosen.runtime, precision=chosen.precision, threads=chosen.threads)


def _listed(folder: Path, name: str, sha256: str) -> Artifact:
    try:
        runner.read_verified(folder, name, sha256)
    except runner.Refusal as refusal:
        raise IntegrityError(str(refusal), mend="take the bundle from where it was made") from None
    return Artifact(path=(folder / name).absolute(), sha256=sha256)


def _file(device: Device, path: Path, runtime: str, target: Target) -> Engine:
    model = model_at(path)
    signature = device.inspect(model.file)
    chosen = runtime or _first_working(device, path, target)
    fixed = signature.quantized or chosen in TYPED  # other runtimes run halves in full
    return Engine(
        model=replace(model, precision=signature.precision),
        runtime=chosen,
        precision=signature.precision if fixed else Precision.FP32,
        threads=target.threads,
    )


def _first_working(device: Device, path: Path, target: Target) -> str:
    readable = [name for name in target.runtimes if path.suffix == ".onnx" or name == "openvino"]
    health = {one.name: one for one in device.probe().runtimes}
    working = [name for name in readable if health[name].works]
    if working:
        return working[0]
    problems = "; ".join(f"{name}: {health[name].problem}" for name in readable)
    mends = " or ".join(health[name].mend for name in readable)
    raise BackendMissing(
        f"no runtime here can run {path.name}",
        cause=problems or f"{', '.join(target.runtimes)} cannot read it",
        mend=mends or "leave --runtime out, or give an .onnx",
    )


def model_at(path: Path) -> Model:
    """Name a model file, with the weights that it keeps beside it: an .xml in a .bin, an .onnx in files that it names.

    Raises:
        UsageError: there is no such file, or it is of a kind that no runtime here reads.
        ModelError: it is malformed.
        IntegrityError: it takes weights from outside its folder.

    """
    if not path.is_file():
        raise UsageError(f"there is no model {path}", mend="give the path of an .onnx or .xml file")
    if path.suffix == ".onnx":
        return Model(file=Artifact.of(path.absolute()), external=external_files(path))
    weights = path.with_suffix(".bin")
    if path.suffix == ".xml" and weights.is_file():
        return Model(file=Artifact.of(path.absolute()), weights=Artifact.of(weights.absolute()))
    cause = f"{weights.name} is not beside it" if path.suffix == ".xml" else f"it ends in {path.suffix!r}"
    raise UsageError(
        f"{path} cannot be read as a model", cause=cause, mend="give an .onnx, or an .xml with its .bin"
    )
