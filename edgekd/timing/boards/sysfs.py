"""Read what the kernel says of a board by name: its model, clock limits and temperature sensors.

`edgekd.timing.sensors` reads the same places at every block, for speed without names; this is read once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from edgekd.timing.sensors import gauges
from edgekd.values.power import BoardReading, Clock, Temperature

_MOST = 256  # entries of one folder
_RELEASE = re.compile(r"# R(?P<major>\d{1,4}) \(release\), REVISION: (?P<minor>[\d.]{1,20})")
_CHIP = re.compile(r"(?:nvidia,(?P<tegra>tegra\d{3})|brcm,(?P<bcm>bcm\d{4}))")
_CORE = re.compile(r"cpu(?P<number>\d{1,4})")
_GRAPHICS = re.compile(r"(?:^|\.)gpu$|^gpu-gpc-0$|^gpu$")  # 17000000.gpu, gpu.0's child; Thor's
_MEMORY = re.compile(r"^bwmgr$|emc")


def read_sysfs(root: Path = Path("/")) -> BoardReading:
    """Read a board's name and chip, its cores' and GPU's limits, and its temperatures; what is missing is empty."""
    board = said(root / "proc/device-tree/model").replace("\0", "").strip()
    chip = _CHIP.search(said(root / "proc/device-tree/compatible"))
    release = _RELEASE.search(said(root / "etc/nv_tegra_release"))
    return BoardReading(
        board=board,
        soc=(chip["tegra"] or chip["bcm"]) if chip else "",
        release=f"L4T {release['major']}.{release['minor'].rstrip('.')}" if release else "",
        clocks=(*_cores(root), *_devices(root)),
        temperatures=tuple(_zones(root)),
    )


def said(path: Path) -> str:
    """Return the text of a kernel's file; empty where it is not there, not for us, or gives an error."""
    opened = gauges([path])
    try:
        return opened[0].text() if opened else ""
    finally:
        for gauge in opened:
            gauge.close()


def number(path: Path) -> int | None:
    """Return the whole number in a kernel's file, or None."""
    text = said(path)
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def entries(folder: Path, pattern: str) -> list[Path]:
    """List a folder's entries in the order of the numbers in their names; empty where it is not there."""
    try:
        found = list(folder.glob(pattern))[:_MOST]
    except OSError:
        return []
    return sorted(found, key=lambda path: (len(path.name), path.name))


def _cores(root: Path) -> Iterator[Clock]:
    for folder in entries(root / "sys/devices/system/cpu", "cpu[0-9]*"):
        if not _CORE.fullmatch(folder.name):
            continue
        online = {0: False, 1: True}.get(number(folder / "online") or 0) if _has(folder / "online") else None
        scaling = folder / "cpufreq"
        clock = Clock(
            name=folder.name,
            current_mhz=_mhz(scaling / "scaling_cur_freq", 1e3),
            lowest_mhz=_mhz(scaling / "scaling_min_freq", 1e3),
            highest_mhz=_mhz(scaling / "scaling_max_freq", 1e3),
            governor=said(scaling / "scaling_governor")[:40],
            online=online,
        )
        if clock.highest_mhz is not None or online is False:
            yield clock


def _devices(root: Path) -> Iterator[Clock]:
    """Give the GPU's and the memory's clocks, from devfreq."""
    found: set[str] = set()
    for folder in entries(root / "sys/class/devfreq", "*"):
        name = "gpu" if _GRAPHICS.search(folder.name) else "emc" if _MEMORY.search(folder.name) else ""
        if name and name not in found and _has(folder / "max_freq"):
            found.add(name)
            yield Clock(
                name=name,
                current_mhz=_mhz(folder / "cur_freq", 1e6),
                lowest_mhz=_mhz(folder / "min_freq", 1e6),
                highest_mhz=_mhz(folder / "max_freq", 1e6),
                governor=said(folder / "governor")[:40],
            )


def _zones(root: Path) -> Iterator[Temperature]:
    for folder in entries(root / "sys/class/thermal", "thermal_zone*"):
        name = said(folder / "type")[:40].removesuffix("-thermal").removesuffix("_thermal")
        milli = number(folder / "temp")  # a part without power gives an error, not a number
        if name:
            yield Temperature(zone=name, celsius=None if milli is None else milli / 1e3)


def _mhz(path: Path, in_a_mhz: float) -> float | None:
    found = number(path)
    return None if found is None else found / in_a_mhz


def _has(path: Path) -> bool:
    return bool(said(path))
