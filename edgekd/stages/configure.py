"""Read a job: defaults, the user's file, the job, the environment and the command line, in rising order."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.errors import ConfigError, EdgekdError
from edgekd.stages import origins as layers
from edgekd.stages.origins import DEFAULT, Layer, Setting
from edgekd.values.codec import decode, did_you_mean, fingerprint, plain
from edgekd.values.job import CLASSIFICATION_LOSSES, Job, TargetSection
from edgekd.values.student import StudentSpec
from edgekd.values.target import Profile, Target

USER_FILE = Path("~/.config/edgekd/config.toml")

DEFAULT_TARGET = TargetSection()
_RISING = (DEFAULT, "user file", "job", "environment", layers.COMMAND_LINE)  # what origins begin with

_SHIPPED = {
    "jobs": "tools/jobs",
    "hardware_profiles": "hardware_profiles",
}  # kind -> folder in the repository
_WORDS = {"jobs": "job", "hardware_profiles": "hardware profile"}
_LATENCY = "budget.latency_ms."
_LOSSES = "distillation.losses."
_PLAIN_KIND = "classification"
_LOSSES_OF_CLASSIFICATION = (
    layers.Setting(key="distillation.losses", value=CLASSIFICATION_LOSSES, origin=layers.DEFAULT),
)
_SPEEDUP = f"{_LATENCY}speedup"


@dataclass(frozen=True, kw_only=True)
class Configured:
    """A job, where it lies, and where each of its values came from."""

    job: Job
    name: str
    beside: Path  # the folder that relative paths in the job are relative to
    origins: dict[
        str, str
    ]  # dotted key -> "default", "user file …", "job …", "environment …", "command line"

    def settings(self) -> tuple[Setting, ...]:
        """Return every key with its value and origin, in the order of the sections."""
        held = plain(self.job)
        return tuple(
            Setting(key=key, value=_at(held, key), origin=origin) for key, origin in self.origins.items()
        )


def configure(
    source: str | Path,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
    user_file: Path | None = USER_FILE,
) -> Configured:
    """Read a job file, or a job that edgekd ships, under everything that overrides it.

    Args:
        source: a path, or the name of a shipped job such as `digits`.
        overrides: `section.key=value`, the strongest.
        environment: `EDGEKD_SECTION__KEY` variables, the next strongest.
        user_file: settings for all of a user's jobs, weaker than the job; it need not exist.

    Raises:
        ConfigError: a file is missing or not TOML; a key is unknown, missing or has a wrong value.

    """
    path = _find("jobs", source, Path())
    given = (
        _of_user(user_file),
        layers.from_file(path, f"job {source}"),
        layers.from_environment(environment),
        layers.from_overrides(overrides),
    )
    held, origins = _merged(layers.defaults(), *given)
    if (
        held["task.kind"] == _PLAIN_KIND
    ):  # its losses are known without its data, so that single settings can join them
        held, origins = _merged(layers.defaults(), _LOSSES_OF_CLASSIFICATION, *given)
    _take_profile_of_device(held, origins)
    job = decode(Job, _nested(held))
    return Configured(job=job, name=path.stem, beside=path.resolve().parent, origins=origins)


def load_target(job: Job, beside: Path) -> Target:
    """Read the hardware profile a job names and apply the job's choices to it.

    Raises:
        ConfigError: there is no such profile, it holds a wrong key, or it lacks the runtime asked for.

    """
    return target_from(job.target, beside)


def target_from(section: TargetSection, beside: Path) -> Target:
    """Apply a choice of runtimes and threads to a hardware profile, given by name or path.

    Raises:
        ConfigError: there is no such profile, it holds a wrong key, or it lacks the runtime asked for.

    """
    path, profile = _profile(section.profile, beside)
    for runtime in section.runtimes:
        if runtime not in profile.runtimes:
            raise ConfigError(
                f"the hardware profile {profile.name!r} has no runtime {runtime!r}",
                cause=f"{path} lists {', '.join(profile.runtimes)}",
                mend=did_you_mean(runtime, list(profile.runtimes)),
            )
    return Target(
        profile=profile,
        device=section.device,
        runtimes=section.runtimes or tuple(profile.runtimes),
        threads=section.threads or profile.threads,
        tune=section.tune,
        wait_s=section.wait_s,
        record=section.record,
    )


def profile_of(device: str) -> str:
    """Return the hardware profile of a device where none is asked for: the one that it was added or recorded with.

    Raises:
        DeviceError: no device has this name.
        ConfigError: none fitted when it was added.

    """
    from edgekd.devices import CASSETTE, registry

    if device.startswith(CASSETTE):
        return device
    if device == DEFAULT_TARGET.device:
        return DEFAULT_TARGET.profile
    board = registry.known_board(registry.config_folder(), device)
    if not board.profile:
        mend = f"give --profile NAME; one is made by: edgekd devices probe {device} --write-profile {device}.toml"
        raise ConfigError(f"no hardware profile is written down for {device}", mend=mend)
    return board.profile


def shipped(kind: str, name: str) -> Path:
    """Find a job or a hardware profile that comes with edgekd; `kind` is `jobs` or `hardware_profiles`.

    Raises:
        ConfigError: there is none of that name; the message suggests the nearest.

    """
    found = {path.stem: path for folder in _shipped_folders(kind) for path in sorted(folder.glob("*.toml"))}
    if name not in found:
        mend = f"{did_you_mean(name, list(found))}; or give the path of a .toml file"
        raise ConfigError(f"there is no {_WORDS[kind]} {name!r}", mend=mend)
    return found[name]


def job_digest(job: Job) -> str:
    """Name what a job asks of each trial, whatever its paths: part of the key of its history.

    How many trials and finalists are wanted changes none of them, so that asking for more goes on with those
    there are. What the paths hold (teacher, data, profile) must stand beside this in a key.
    """
    return fingerprint(
        dataclasses.replace(
            job,
            teacher=dataclasses.replace(job.teacher, model="", weights=None),
            task=dataclasses.replace(job.task, data=""),
            target=dataclasses.replace(job.target, profile="", wait_s=0.0, record=""),
            search=dataclasses.replace(job.search, trials=1, finalists=1),
        )
    )


def student_from(path: Path) -> StudentSpec:
    """Read a student's spec from JSON: the spec itself, a bundle's manifest, or what `edgekd run --json` printed.

    Raises:
        ConfigError: the file is missing or holds no spec.

    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        mend = "give a spec, a manifest.json, or the JSON of a run"
        raise ConfigError(f"{path} cannot be read as JSON", cause=str(error), mend=mend) from error
    for holder in ("student", "spec"):
        if isinstance(data, dict) and holder in data:
            data = data[holder]
    return decode(StudentSpec, data, path.name)


def _find(kind: str, source: str | Path, beside: Path) -> Path:
    given = Path(source).expanduser()
    if given.suffix == ".toml" or len(given.parts) != 1 or (beside / given).is_file():
        return beside / given
    return shipped(kind, str(source))


def _profile(source: str, beside: Path) -> tuple[str, Profile]:
    """Read a hardware profile by name or path, or that of a recorded session; return where it came from as well."""
    from edgekd.devices import CASSETTE

    if source.startswith(CASSETTE):
        from edgekd.devices.cassette import recorded_profile

        if (found := recorded_profile(Path(source.removeprefix(CASSETTE)))) is not None:
            return source, found
        source = DEFAULT_TARGET.profile  # as it was recorded before cassettes knew
    path = _find("hardware_profiles", source, beside)
    return str(path), decode(Profile, layers.read_toml(path), path.name)


def _recorded(device: str) -> Profile | None:
    """Return the profile on a cassette; None where it cannot be read, which connecting to it will explain."""
    from edgekd.devices import CASSETTE
    from edgekd.devices.cassette import recorded_profile

    try:
        return recorded_profile(Path(device.removeprefix(CASSETTE)))
    except EdgekdError:
        return None


def _shipped_folders(kind: str) -> list[Path]:
    package = Path(__file__).resolve().parents[1]
    return [package.parent / _SHIPPED[kind], package / "shipped" / kind]  # a checkout, a wheel


def _of_user(user_file: Path | None) -> Layer:
    if user_file is None:
        return ()
    try:
        path = user_file.expanduser()
    except RuntimeError:  # nobody's home
        return ()
    return layers.from_file(path, f"user file {path}", anchor=path.parent) if path.is_file() else ()


def _merged(*rising: Layer) -> tuple[dict[str, Any], dict[str, str]]:
    held: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in rising:
        for key in _displaced(layer):
            held[key], origins[key] = None, DEFAULT
        for setting in layer:
            _put(setting, held, origins)
    order = {key: at for at, key in enumerate(layers.known_keys())}
    ranked = sorted(
        origins, key=lambda key: max(at for known, at in order.items() if f"{key}.".startswith(f"{known}."))
    )
    return held, {key: origins[key] for key in ranked}


def _take_profile_of_device(held: dict[str, Any], origins: dict[str, str]) -> None:
    """Let a board or a cassette bring its own profile along, unless one is given where the device is, or more strongly.

    One that is not known here changes nothing: a job can be read where it does not run.
    """
    device = held["target.device"]
    own, given = (_RISING.index(_layer(origins[f"target.{key}"])) for key in ("device", "profile"))
    if own <= given or device == DEFAULT_TARGET.device:
        return
    from edgekd.devices import CASSETTE, registry

    if str(device).startswith(CASSETTE):
        profile = device if _recorded(device) else ""
    else:
        board = registry.boards(registry.config_folder()).get(str(device))
        profile = board.profile if board is not None else ""
    if profile:
        held["target.profile"], origins["target.profile"] = profile, f"device {device}"


def _layer(origin: str) -> str:
    return next(word for word in _RISING if origin.startswith(word))


def _displaced(layer: Layer) -> list[str]:
    """Percentiles and a speed-up exclude each other: a layer that gives one takes the other away."""
    given = {
        setting.key for setting in layer if setting.key.startswith(_LATENCY) and setting.value is not None
    }
    both = [key for key in layers.known_keys() if key.startswith(_LATENCY)]
    if _SPEEDUP in given:
        return [key for key in both if key not in given]
    return [_SPEEDUP] if given else []


def _put(setting: Setting, held: dict[str, Any], origins: dict[str, str]) -> None:
    """Lay a setting over what is held; a table replaces a table, one key of a table joins the others.

    A loss given as a number is its weight, so that another of its settings can join it.
    """
    for key in [key for key in held if key == setting.key or key.startswith(f"{setting.key}.")]:
        del held[key], origins[key]
    table = setting.key.rpartition(".")[0]
    if held.get(table) == {}:
        del held[table], origins[table]
    elif table in held and table.startswith(_LOSSES):
        held[f"{table}.weight"], origins[f"{table}.weight"] = held.pop(table), origins.pop(table)
    parts = dict(_leaves(setting.key, setting.value))
    held.update(parts)
    origins.update(dict.fromkeys(parts, setting.origin))


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Give a value, or those inside a table but for what was left out of it."""
    if not isinstance(value, dict):
        yield key, value
        return
    given = {name: item for name, item in value.items() if item is not None and item != []}
    if not given:
        yield key, {}
    for name, item in given.items():
        yield from _leaves(f"{key}.{name}", item)


def _nested(held: Mapping[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in held.items():
        if value is None:
            continue
        *sections, name = key.split(".")
        inside = table
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[name] = value
    return table


def _at(held: Any, key: str) -> Any:
    for name in key.split("."):
        held = held[name]
    return held
