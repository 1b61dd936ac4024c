"""Suggest the hardware profile that fits a board, by what the board says of itself."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgekd.errors import ConfigError
from edgekd.stages.configure import shipped

# A word of the board's model -> its profile. The first that is found counts.
_BOARDS = {
    "thor": "jetson-thor",
    "jetson t5000": "jetson-thor",
    "jetson t4000": "jetson-thor",
    "orin nano": "jetson-orin-nano",
    "orin nx": "jetson-orin-nx",
    "agx orin": "jetson-agx-orin",
    "raspberry pi 5": "raspberry-pi-5",
    "raspberry pi compute module 5": "raspberry-pi-5",
    "raspberry pi 4": "raspberry-pi-4",
    "raspberry pi compute module 4": "raspberry-pi-4",
}
_ORIN, _ORIN_JETPACK_7 = re.compile(r"\borin\b"), "jetson-orin-jp7"
_RELEASE = re.compile(r"# R(\d{1,3}) ")
_JETPACK_7 = 38  # the L4T that it begins with
_VNNI = frozenset(("avx512_vnni", "avx_vnni"))


def suggest_profile(machine: str, *, model: str = "", release: str = "", features: Sequence[str] = ()) -> str:
    """Return the name of a shipped profile; empty where none fits.

    Args:
        machine: x86_64, aarch64, ...
        model: of the board, as its firmware names it; empty where it does not.
        release: of a Jetson's system, such as "# R36 (release), REVISION: 4.3, ...".
        features: of the processor, where they are known.

    """
    if machine in ("x86_64", "AMD64"):
        return _first(*_x86(features))
    if machine in ("aarch64", "arm64"):
        return _first(_arm(model.lower(), release), "arm-cpu")
    return ""


def _x86(features: Sequence[str]) -> tuple[str, ...]:
    if "amx_int8" in features:
        return "x86-cpu-amx", "x86-cpu-vnni", "x86-cpu"
    return ("x86-cpu-vnni", "x86-cpu") if _VNNI.intersection(features) else ("x86-cpu",)


def _arm(model: str, release: str) -> str:
    found = _RELEASE.match(release)
    if _ORIN.search(model) and found and int(found[1]) >= _JETPACK_7:
        return _ORIN_JETPACK_7
    return next((profile for word, profile in _BOARDS.items() if word in model), "")


def _first(*names: str) -> str:
    return next((name for name in names if name and _is_shipped(name)), "")


def _is_shipped(name: str) -> bool:
    try:
        shipped("hardware_profiles", name)
    except ConfigError:
        return False
    return True
