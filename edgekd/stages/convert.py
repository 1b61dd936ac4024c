"""Simplify the graph of an .onnx in a child process, where its parsing can harm nobody."""

from __future__ import annotations

from pathlib import Path

from edgekd.values.model import Model
from edgekd.values.order import OptimizeOrder, OptimizeReply
from edgekd.wire import Child

_TIMEOUT_S = 300.0


def convert(folder: Path, model: Model, opset: int | None = None, memory_mib: int = 8192) -> OptimizeReply:
    """Fold constants, drop what nothing uses and, where an opset is given, convert to it.

    What the result computes is for the caller to check.

    Raises:
        ModelError: the file is malformed, or cannot be converted to the opset.
        WorkerDied: the child crashed.

    """
    order = OptimizeOrder(model=model.file, folder=folder.resolve(), opset=opset)
    with Child("edgekd.quantizers", memory_mib=memory_mib) as child:
        return child.ask("optimize", order, OptimizeReply, timeout_s=_TIMEOUT_S)
