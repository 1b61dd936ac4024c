"""Each order as a cassette knows it: its content, and the files and folders it names here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekd.devices.cassette.asked import Asked, content_of
from edgekd.devices.cassette.wording import Words
from edgekd.values.artifact import Artifact
from edgekd.values.codec import encode
from edgekd.values.latency import Protocol
from edgekd.values.model import Engine
from edgekd.values.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked, and in which words an error may speak of it."""

    asked: Asked
    words: Words


def probing(runtimes: tuple[str, ...] = ()) -> Question:
    """Ask what the machine is."""
    return Question(asked=Asked(order="probe", runtimes=runtimes), words=Words())


def inspecting(model: Artifact) -> Question:
    """Ask for a model's signature."""
    return Question(asked=Asked(order="inspect", files={"model": model.sha256}), words=Words([model]))


def building(engine: Engine) -> Question:
    """Ask for one build."""
    return _of("build", [engine])


def compiling(engine: Engine, folder: Path) -> Question:
    """Ask for a compiled file."""
    return _of("compile", [engine], folder=folder)


def timing(engines: Sequence[Engine], protocol: Protocol) -> Question:
    """Ask what engines take."""
    return _of("time", engines, protocol=protocol)


def itemising(engine: Engine, images: Artifact, recipe: Preprocess) -> Question:
    """Ask what whole requests take."""
    return _of("ledger", [engine], files={"images": images}, recipe=recipe)


def metering(engine: Engine, seconds: float) -> Question:
    """Ask what an inference costs in energy."""
    return _of("energy", [engine], seconds=seconds)


def listing(engine: Engine, passes: int) -> Question:
    """Ask for an engine's layers."""
    return _of("layers", [engine], passes=passes)


def inferring(engine: Engine, inputs: Mapping[str, Artifact], folder: Path) -> Question:
    """Ask for the outputs of inputs."""
    return _of("infer", [engine], files=inputs, folder=folder)


def _of(
    order: str,
    engines: Sequence[Engine],
    *,
    protocol: Protocol | None = None,
    files: Mapping[str, Artifact] | None = None,
    recipe: Preprocess | None = None,
    seconds: float | None = None,
    passes: int | None = None,
    folder: Path | None = None,
) -> Question:
    files = files or {}
    asked = Asked(
        order=order,
        engines=tuple(content_of(engine) for engine in engines),
        protocol=protocol,
        files={name: file.sha256 for name, file in files.items()},
        recipe=recipe,
        seconds=seconds,
        passes=passes,
    )
    # By content, so that "file 0" means the same in whatever order the engines are given.
    alike = sorted(engines, key=lambda engine: encode(content_of(engine)))
    named = [file for engine in alike for file in engine.model.files]
    return Question(asked=asked, words=Words([*named, *(files[name] for name in sorted(files))], folder))
