"""`python -m edgekd.worker --memory-mib N [--runtime NAME]`: serve the host's orders from standard input."""

from __future__ import annotations

import contextlib
import sys
from types import ModuleType
from typing import cast

from edgekd.errors import UsageError
from edgekd.wire import limit_memory, serve


def main(arguments: list[str]) -> None:
    """Serve orders until standard input ends.

    Raises:
        UsageError: the arguments are not `--memory-mib N`, and `--runtime NAME` after it or nothing.

    """
    flags, values = arguments[::2], arguments[1::2]  # argparse would cost memory and time
    known = flags in (["--memory-mib"], ["--memory-mib", "--runtime"]) and len(flags) == len(values)
    if not known or not values[0].isdigit():
        mend = "let edgekd start it"
        raise UsageError("the worker takes --memory-mib N, and then --runtime NAME or nothing", mend=mend)
    limit_memory(int(values[0]))
    # OpenVINO's packages report to their maker when they find this one.
    sys.modules["openvino_telemetry"] = cast("ModuleType", None)
    from edgekd import backends  # after the limit, so that it holds for what is imported too
    from edgekd.worker.orders import Worker

    for name in values[1:]:
        # While the others of its launch start: `open` would import it too, one worker after the other.
        with contextlib.suppress(Exception):  # `open` will explain it
            backends.load(name)
    serve(Worker().handlers())


if __name__ == "__main__":
    main(sys.argv[1:])
