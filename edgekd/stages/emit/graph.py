"""What the writers of operators share: the graph so far, and the node of the trace that is being written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgekd.errors import ModelError

KINDS = {
    torch.float32: TensorProto.FLOAT,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.bool: TensorProto.BOOL,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """A tensor of the trace: what it is called in the graph, and what it was on the example."""

    name: str
    value: Tensor

    @property
    def rank(self) -> int:
        """Number of its dimensions."""
        return self.value.dim()

    def axis(self, dim: int) -> int:
        """Return a dimension counted from the front."""
        return dim % max(self.rank, 1)


Operand: TypeAlias = Known | float


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One node of the trace: where it stands, what it gave on the example, and what its result is to be called."""

    graph: onnx.GraphProto
    name: str
    output: str
    value: Any  # of the result: a tensor, or several

    def put(self, operation: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add the operator that gives the result, or with `output` another tensor; return its name."""
        made = output or self.output
        self._add(operation, inputs, [made], attributes)
        return made

    def step(self, suffix: str, operation: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator on the way to the result; return the name of what it gives."""
        made = f"{self.name}.{suffix}"
        self._add(operation, inputs, [made], attributes, suffix)
        return made

    def parts(self, operation: str, *inputs: str, **attributes: Any) -> tuple[Known, ...]:
        """Add an operator that gives several tensors."""
        values = tuple(self.value)
        names = [f"{self.output}.{at}" for at in range(len(values))]
        self._add(operation, inputs, names, attributes)
        return tuple(Known(name=name, value=value) for name, value in zip(names, values))

    def keep(self, suffix: str, tensor: Tensor) -> str:
        """Store a weight, floats as float32; return its name."""
        name = f"{self.name}.{suffix}"
        whole = tensor.detach().contiguous().cpu()
        array = (whole.float() if whole.is_floating_point() else whole).numpy()
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, suffix: str, numbers: Sequence[int]) -> str:
        """Store shapes, axes or limits."""
        return self.keep(suffix, torch.tensor(list(numbers), dtype=torch.int64))

    def parameters(self, module: nn.Module) -> tuple[str, ...]:
        """Store a module's weight, and its bias where it has one."""
        given = {"weight": module.weight, "bias": module.bias}
        return tuple(self.keep(key, one) for key, one in given.items() if isinstance(one, Tensor))

    def operand(self, suffix: str, given: Operand, beside: Operand) -> str:
        """Return the name of an operand; a number becomes a scalar of the type beside it."""
        if isinstance(given, Known):
            return given.name
        kind = beside.value.dtype if isinstance(beside, Known) else torch.float32
        return self.keep(suffix, torch.tensor(given, dtype=kind))

    def refuse(self, what: str) -> ModelError:
        """Say why there is no ONNX for this node."""
        mend = "use edgekd.stages.export.export_module, which takes any traceable module"
        return ModelError(f"the student's {self.name!r} cannot be written as ONNX", cause=what, mend=mend)

    def _add(
        self,
        operation: str,
        inputs: Sequence[str],
        outputs: list[str],
        attributes: dict[str, Any],
        suffix: str = "",
    ) -> None:
        name = f"{self.name}.{suffix}" if suffix else self.name
        self.graph.node.append(helper.make_node(operation, list(inputs), outputs, name=name, **attributes))
