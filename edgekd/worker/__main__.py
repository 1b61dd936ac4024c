"""`python -m edgekd.worker --memory-mib N`: serve the host's orders from standard input."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import cast

from edgekd.errors import UsageError
from edgekd.wire import limit_memory, serve


def main(arguments: list[str]) -> None:
    """Serve orders until standard input ends.

    Raises:
        UsageError: the arguments are not `--memory-mib N`.

    """
    if len(arguments) != 2 or arguments[0] != "--memory-mib" or not arguments[1].isdigit():  # noqa: PLR2004 - a flag and its value; argparse would cost memory and time
        raise UsageError("the worker takes --memory-mib N", mend="let edgekd start it")
    limit_memory(int(arguments[1]))
    # OpenVINO's packages report to their maker when they find this one.
    sys.modules["openvino_telemetry"] = cast("ModuleType", None)
    from edgekd.worker.orders import Worker  # after the limit, so that it holds for what is imported too

    serve(Worker().handlers())


if __name__ == "__main__":
    main(sys.argv[1:])
