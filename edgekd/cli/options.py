"""Options that several verbs share, and how their texts are read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from edgekd.errors import UsageError
from edgekd.values.codec import did_you_mean
from edgekd.values.model import Precision
from edgekd.values.preprocess import Normalisation
from edgekd.values.target import Target

_TALK = "What is shown"
_TARGET = "The target"


class Inconclusive(str, Enum):
    """What an answer of INCONCLUSIVE ends with."""

    FAIL = "fail"
    WARN = "warn"
    PASS = "pass"  # noqa: S105 - a verdict


OnInconclusive = Annotated[
    Inconclusive,
    typer.Option(
        help="fail: exit 3. warn, pass: exit 0, with and without a warning.", rich_help_panel="The answer"
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to stdout.", rich_help_panel=_TALK)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show warnings and errors only.", rich_help_panel=_TALK)
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show every detail as it happens.", rich_help_panel=_TALK)
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Write everything here.", show_default=False)
]
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="A job.toml, or a job that comes with edgekd: digits.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.KEY=VALUE",
        help="Change a value of the job, such as budget.latency_ms.p99=1.5",
        show_default=False,
    ),
]
ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        help="Hardware profile, by name or path; the device's own unless given (of this machine: x86-cpu).",
        show_default=False,
        rich_help_panel=_TARGET,
    ),
]
DeviceName = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help="A board of `edgekd devices`, or cassette:FILE; this machine unless given.",
        show_default=False,
        rich_help_panel=_TARGET,
    ),
]
Runtimes = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        metavar="A,B",
        help="Such as onnxruntime, openvino or tensorrt; all of the profile's unless given.",
        show_default=False,
        rich_help_panel=_TARGET,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Threads of an inference; the profile's unless given.",
        show_default=False,
        rich_help_panel=_TARGET,
    ),
]
Wait = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0.0,
        help="For a board that somebody else measures on; at once unless given.",
        show_default=False,
        rich_help_panel=_TARGET,
    ),
]
Tune = Annotated[
    str,
    typer.Option(
        "--tune",
        metavar="MODE",
        help="Jetson: hold the clocks at their highest while it measures: `clocks`, or a power mode to set as well,"
        " by name or number. Needs the sudo lines that `devices doctor` prints; put back afterwards, by a watchdog"
        " there where the connection is lost.",
        show_default=False,
        rich_help_panel=_TARGET,
    ),
]
Record = Annotated[
    str,
    typer.Option(
        "--record",
        metavar="FILE",
        help="Write what the device is asked and answers into a file, for --target cassette:FILE.",
        show_default=False,
        rich_help_panel=_TARGET,
    ),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=1x3x224x224",
        help="Shape of an input that the file leaves open (1 otherwise); once an input.",
        show_default=False,
    ),
]

Mean = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,C",
        help="Taken from pixels in [0, 1] of --calibrate images; one value, or one a channel.",
        show_default=False,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(metavar="A,B,C", help="What they are then divided by.", show_default=False),
]


def shapes_from(texts: Sequence[str] | None, option: str = "--shape") -> dict[str, tuple[int, ...]]:
    """Read `images=1x3x224x224`, once an input.

    Raises:
        UsageError: a text has another form, or an input is named twice.

    """
    found: dict[str, tuple[int, ...]] = {}
    for text in texts or ():
        name, _, shape = text.rpartition("=")
        if not name or not re.fullmatch(r"[1-9]\d*([x,][1-9]\d*)*", shape):
            mend = f"write {option} images=1x3x224x224; the name is the input's, sizes are above 0"
            raise UsageError(f"{option} {text!r} is not NAME=SHAPE", mend=mend)
        if name in found:
            raise UsageError(f"{option} gives the input {name!r} twice", mend="give each input once")
        found[name] = tuple(int(size) for size in re.split("[x,]", shape))
    return found


def numbers_from(text: str, option: str) -> tuple[float, ...]:
    """Read `0.485,0.456,0.406`.

    Raises:
        UsageError: a part is no finite number.

    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(map(math.isfinite, found)) or (option == "--std" and min(found) <= 0):
        mend = f"write {option} 0.485,0.456,0.406; {'each above 0' if option == '--std' else 'or one number'}"
        raise UsageError(f"{option} {text!r} is not a list of numbers", mend=mend)
    return found


def choices_from(text: str | None, known: Sequence[str], option: str) -> tuple[str, ...]:
    """Read `a,b`, each one of `known`, in the order given; none of them twice.

    Raises:
        UsageError: one is not known; the message suggests the nearest.

    """
    found = tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))
    for word in found:
        if word not in known:
            raise UsageError(f"{option} {word!r} is not possible", mend=did_you_mean(word, known))
    return found


def precisions_from(text: str | None, option: str = "--precision") -> tuple[Precision, ...]:
    """Read `fp32,int8`.

    Raises:
        UsageError: one is not a precision.

    """
    known = [precision.value for precision in Precision]
    return tuple(Precision(word) for word in choices_from(text, known, option))


def precision_from(text: str, option: str = "--precision") -> Precision:
    """Read one precision.

    Raises:
        UsageError: it is none, or there are several.

    """
    found = precisions_from(text, option)
    if len(found) != 1:
        raise UsageError(f"{option} {text!r} is not one precision", mend=f"give one, such as {option} fp32")
    return found[0]


def normalisation_from(mean: str | None, std: str | None) -> Normalisation | None:
    """Read --mean and --std; None where neither is given."""
    if mean is None and std is None:
        return None
    return Normalisation(mean=numbers_from(mean or "0", "--mean"), std=numbers_from(std or "1", "--std"))


def unwrapped(text: str) -> str:
    """Join the lines of each paragraph of a help text, for the terminal to wrap."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def names_from(text: str | None) -> tuple[str, ...]:
    """Read `a,b`."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def target_from_options(
    profile_name: str | None,
    runtime: str | None,
    threads: int | None,
    device: str | None = None,
    wait_s: float = 0.0,
    *,
    record: str = "",
    tune: str = "",
) -> Target:
    """Read --profile, --runtime, --threads, --target, --wait, --record and --tune.

    Raises:
        ConfigError: no such profile, or a runtime that it does not list.
        DeviceError: no such device.

    """
    from edgekd.stages.configure import DEFAULT_TARGET, profile_of, target_from
    from edgekd.values.job import TargetSection

    name = device or DEFAULT_TARGET.device
    section = TargetSection(
        profile=profile_name or profile_of(name),
        device=name,
        runtimes=names_from(runtime),
        threads=threads,
        wait_s=wait_s,
        record=record,
        tune=tune,
    )
    return target_from(section, Path())


def overrides_with(
    overrides: Sequence[str] | None, device: str | None, wait_s: float, record: str, tune: str = ""
) -> list[str]:
    """Let --target, --wait, --record and --tune stand for overrides of [target], which win over others.

    Raises:
        DeviceError: no device and no hardware profile has this name.

    """
    asked = {
        **(_of_target(device) if device else {}),
        "target.wait_s": f"{wait_s:g}" if wait_s else "",
        "target.record": record,
        "target.tune": tune,
    }
    return [*(overrides or ()), *(f"{key}={text}" for key, text in asked.items() if text)]


def _of_target(name: str) -> dict[str, str]:
    """Return what --target means for a job: a device, or this machine by a hardware profile."""
    from edgekd.devices import CASSETTE, registry
    from edgekd.errors import ConfigError
    from edgekd.stages.configure import DEFAULT_TARGET, shipped

    if name == DEFAULT_TARGET.device or name.startswith(CASSETTE):
        return {"target.device": name}
    folder = registry.config_folder()
    if name not in registry.boards(folder):
        here = {"target.device": DEFAULT_TARGET.device, "target.profile": name}
        if name.endswith(".toml"):
            return here
        with suppress(ConfigError):
            shipped("hardware_profiles", name)
            return here
    registry.known_board(folder, name)
    return {"target.device": name}


def state_file() -> Path:
    """Return where calibrations and the history of comparisons are kept (XDG Base Directory Specification).

    Raises:
        UsageError: this user has no home folder.

    """
    given = Path(os.environ.get("XDG_STATE_HOME") or "")
    try:
        folder = given if given.is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError as error:
        mend = "give --history FILE, or set XDG_STATE_HOME"
        raise UsageError(
            "there is no home folder to keep the history in", cause=str(error), mend=mend
        ) from error
    return folder / "edgekd" / "history.sqlite"
