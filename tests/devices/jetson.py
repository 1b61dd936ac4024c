"""A Jetson in a folder: programs that answer to the names of its tools, and files that say what they did."""

from __future__ import annotations

import sys
from pathlib import Path

from edgekd.values.power import BoardReading, PowerMode

BEFORE = {"mode": "0", "clocks": "free", "rebooted": "no"}

# Two files say its mode and clocks, a third what was run on it.
NVPMODEL = """#!/bin/sh
echo "nvpmodel $*" >> "{board}/log"
case "$1" in
  -q) printf 'NV Power Mode: mode%s\\n%s\\n' "$(cat {board}/mode)" "$(cat {board}/mode)" ;;
  -m)
    if [ "$2" = 3 ]; then
      echo "NVPM WARN: Reboot required for changing to this power mode: 3"
      echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
      read answer
      case "$answer" in YES|yes) echo yes > {board}/rebooted ;; esac
      echo "NVPM ERROR: optMask is 1, no request for power mode"; exit 255
    fi
    echo "$2" > {board}/mode ;;
esac
"""
JETSON_CLOCKS = """#!/bin/sh
echo "jetson_clocks $*" >> "{board}/log"
case "$1" in
  --store)
    if [ -e {board}/stored ]; then
      echo "File $2 already exists. Can I overwrite it? Y/N:"
      read answer
      [ "$answer" = y ] || exit 1
    fi
    cp {board}/clocks {board}/stored ;;
  --restore) [ -e {board}/stored ] || exit 1; cp {board}/stored {board}/clocks ;;
  "") [ -e {board}/broken ] && exit 1; echo held > {board}/clocks ;;
esac
"""
SUDO = """#!/bin/sh
[ "$1" = -n ] || {{ echo "a password would have been asked for" >> {board}/log; exit 9; }}
shift
if grep -q "$(basename $1)" {board}/refused 2>/dev/null; then echo "sudo: a password is required"; exit 1; fi
exec "$@"
"""
# One line of a JetPack 6; the real one goes on for ever.
TEGRASTATS = """#!/bin/sh
echo "RAM 1500/7620MB (lfb 2x4MB) CPU [1%@1510] GR3D_FREQ 0% cpu@45.5C VDD_IN 5000mW/5000mW"
exec sleep 60
"""


class Jetson:
    """A Jetson in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.state = folder, folder / "state"
        self.state.mkdir()
        for name, content in BEFORE.items():
            (self.state / name).write_text(content + "\n")
        (self.state / "log").touch()
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name, script in (("nvpmodel", NVPMODEL), ("jetson_clocks", JETSON_CLOCKS), ("sudo", SUDO)):
            self.install(name, script.format(board=self.state))
        self.pending = folder / "edgekd"

    def install(self, name: str, script: str) -> Path:
        path = self.programs / name
        path.write_text(script)
        path.chmod(0o755)
        return path

    def python(self) -> str:
        """Write a Python whose PATH has the programs: what runs on such a board behind sshd."""
        script = f'#!/bin/sh\nPATH={self.programs}:$PATH; export PATH\nexec {sys.executable} "$@"\n'
        return str(self.install("board-python", script))

    def now(self) -> dict[str, str]:
        return {name: (self.state / name).read_text().strip() for name in BEFORE}

    def log(self) -> list[str]:
        return [line.strip() for line in (self.state / "log").read_text().splitlines()]

    def changing(self) -> list[str]:
        return [line for line in self.log() if not line.startswith("nvpmodel -q")]

    def reading(self) -> BoardReading:
        mode = int((self.state / "mode").read_text())
        return BoardReading(mode=PowerMode(name=f"mode{mode}", id=mode))


def watchdogs(folder: Path) -> list[int]:
    """Return the processes that would put back what is pending in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"edgekd.devices.restoring" in arguments and str(folder).encode() in arguments:
            found.append(int(process.name))
    return found
