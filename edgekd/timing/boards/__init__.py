"""A board's own words: power mode, clocks, heat and rails, read on the board by the worker.

Each tool has its parser, from recorded samples: a word that we do not know becomes a warning in `unknown`,
never an error and never a wrong number.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edgekd.timing.boards.asking import ask, find
from edgekd.timing.boards.jetson_clocks import parse_jetson_clocks
from edgekd.timing.boards.nvpmodel import parse_modes, parse_nvpmodel
from edgekd.timing.boards.sysfs import read_sysfs
from edgekd.timing.boards.tegrastats import parse_tegrastats
from edgekd.timing.boards.vcgencmd import parse_vcgencmd
from edgekd.values.power import BoardReading, PowerMode, merged

__all__ = [
    "parse_jetson_clocks",
    "parse_modes",
    "parse_nvpmodel",
    "parse_tegrastats",
    "parse_vcgencmd",
    "power_modes",
    "read_board",
]

_CONF = Path("etc/nvpmodel.conf")
_MOST_BYTES = 1 << 20
_PI_QUESTIONS = (("get_throttled",), ("measure_clock", "arm"), ("measure_temp",), ("measure_volts", "core"))


def read_board(root: Path = Path("/"), *, thorough: bool = False) -> BoardReading | None:
    """Read what this machine says of itself; None where it is no board with words of its own.

    Reading the kernel's files and the power mode takes some ten milliseconds. `thorough` also asks tegrastats,
    which answers after its first interval, and where we are root jetson_clocks, which takes about a second.

    Args:
        root: where /proc, /sys and /etc are.
        thorough: ask the slow tools as well.

    """
    told = [*_from_nvidia(root, thorough=thorough), *_from_raspberry_pi()]
    kernel = read_sysfs(root)
    if not told and not kernel.board:
        return None
    return merged([kernel, *told])


def power_modes(root: Path = Path("/")) -> tuple[PowerMode, ...]:
    """List the power modes that the vendor defined for this board."""
    return parse_modes(_bytes(root / _CONF).decode(errors="replace"))


def _from_nvidia(root: Path, *, thorough: bool) -> Iterator[BoardReading]:
    if find("nvpmodel"):
        reading = parse_nvpmodel(ask(["nvpmodel", "-q"]).text)
        conf = _bytes(root / _CONF)
        if reading.mode and conf:
            digest = hashlib.sha256(conf).hexdigest()
            reading = replace(reading, mode=replace(reading.mode, conf_sha256=digest))
        yield reading
    if thorough and find("tegrastats"):
        yield parse_tegrastats(ask(["tegrastats", "--interval", "100"], one_line=True).text)
    if thorough and find("jetson_clocks") and os.geteuid() == 0:  # it refuses anybody else
        yield parse_jetson_clocks(ask(["jetson_clocks", "--show"], timeout_s=10.0).text)


def _from_raspberry_pi() -> Iterator[BoardReading]:
    if find("vcgencmd"):
        yield parse_vcgencmd("\n".join(ask(["vcgencmd", *words]).text for words in _PI_QUESTIONS))


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except OSError:  # not a Jetson, or not for us to read
        return b""
