"""The console script: `edgekd`, or `python -m edgekd`."""

from __future__ import annotations

import os

# Training threads that wait for each other spin; where others need the core, they must soon sleep instead.
# OpenMP reads this once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    from edgekd.cli.ending import ending

    with ending():
        from edgekd.cli import app

        app(prog_name="edgekd")


if __name__ == "__main__":
    main()
