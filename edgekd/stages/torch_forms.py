"""The rungs that torch stands on: the live module, its exported program, and what every operator of that gave."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.utils import _pytree

from edgekd.errors import DataError, ModelError
from edgekd.stages.bisect import departure
from edgekd.stages.looking import Arrays, Seen
from edgekd.values.ladder import Blame
from edgekd.values.watch import GraphLayer

# What torch calls operators, as ONNX calls them; others go by torch's name.
_OPERATORS = {
    "adaptive_avg_pool2d": "GlobalAveragePool", "add": "Add", "addmm": "Gemm", "avg_pool2d": "AveragePool",
    "batch_norm": "BatchNormalization", "cat": "Concat", "conv1d": "Conv", "conv2d": "Conv", "convolution": "Conv",
    "linear": "Gemm", "matmul": "MatMul", "max_pool2d": "MaxPool", "mean": "ReduceMean", "mul": "Mul",
    "relu": "Relu", "sigmoid": "Sigmoid", "softmax": "Softmax", "sub": "Sub", "tanh": "Tanh",
}  # fmt: skip
_TORCH = Path(torch.__file__).parent
_LINE = re.compile(r'File "([^"]+)", line (\d+)')


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A module's exported program: its outputs, and its operators' on the first rows."""

    outputs: Arrays
    seen: tuple[Seen, ...]


def answers(module: nn.Module, rows: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Run a module over rows of inputs, in evaluation mode; return each output with the rows first.

    Raises:
        DataError: it cannot take them.

    """
    try:
        with _evaluating(module), torch.inference_mode():
            found = [_tensors(_called(module, feeds)) for feeds in _feeds(rows)]
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError("the module cannot take these inputs", cause=str(error)[:300]) from error
    return [np.stack(column) for column in zip(*found)]


def exported(module: nn.Module, rows: Mapping[str, NDArray[Any]], *, watched: int) -> Program:
    """Export a module, run the program, and look into it on the first `watched` rows.

    Raises:
        ModelError: torch cannot export it.

    """
    first = next(_feeds(rows))
    by_name = first.keys() <= inspect.signature(module.forward).parameters.keys()
    try:
        with _evaluating(module):
            program = torch.export.export(
                module,
                () if by_name else tuple(first.values()),
                kwargs=first if by_name else None,
                strict=False,
            ).module()
        outputs, kept = [], []
        with torch.inference_mode():
            for at, feeds in enumerate(_feeds(rows)):
                outputs.append(_tensors(_called(program, feeds, by_name=by_name)))
                if at < watched:
                    run = _Watched(program)
                    run.run(*feeds.values())
                    kept.append(run.values)
    except Exception as error:  # a user's forward may raise anything, and so may torch's tracer
        cause = f"{type(error).__name__}: {error}"[:300]
        raise ModelError(f"{type(module).__name__} cannot be exported", cause=cause) from error
    seen = tuple(_seen(module, node, [values[node] for values in kept]) for node in kept[0])
    return Program(outputs={str(at): np.stack(column) for at, column in enumerate(zip(*outputs))}, seen=seen)


def first_bad_module(
    module: nn.Module, rows: Mapping[str, NDArray[Any]], program: Program, *, limit: float
) -> Blame | None:
    """Return the first module whose result departs in the exported program; None where all agree."""
    count = len(program.seen[0].values) if program.seen else 0
    live = _hooked(module, {name: array[:count] for name, array in rows.items()})
    last = {one.module: one for one in program.seen}
    for path, values in live.items():
        one = last.get(path)
        if one is None or one.values.size != values.size:
            continue
        departs = departure(values, one.values)
        if departs > limit:
            return Blame(
                layer=one.layer.name,
                operator=one.layer.operator,
                own_error=departs,
                error=departs,
                limit=limit,
                module=path,
                source=one.source,
            )
    return None


def traced_to(blames: tuple[Blame, ...], module: nn.Module) -> tuple[Blame, ...]:
    """Add the line at which each blamed layer's module is defined, where nothing better is known."""
    places = dict(module.named_modules())

    def located(one: Blame) -> Blame:
        path = one.module or one.layer
        while path and path not in places:
            path = path.rpartition(".")[0]
        if not path:
            return one
        return replace(one, module=one.module or path, source=one.source or _defined(places[path]))

    return tuple(map(located, blames))


class _Watched(fx.Interpreter):
    """Runs a program and keeps every tensor of numbers that an operator gave, as it was then."""

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__(program)
        self.values: dict[fx.Node, NDArray[Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if n.op == "call_function" and isinstance(found, Tensor) and found.is_floating_point():
            self.values[n] = found.detach().cpu().float().numpy().copy()
        return found


def _seen(module: nn.Module, node: fx.Node, values: list[NDArray[Any]]) -> Seen:
    path = _module_of(node)
    operator = str(node.target).removeprefix("aten.").partition(".")[0].rstrip("_")
    lines = _LINE.findall(str(node.meta.get("stack_trace") or ""))
    users = [one for one in lines if not Path(one[0]).is_relative_to(_TORCH)] or lines
    where = ":".join(users[-1]) if users else ""
    own = dict(module.named_modules()).get(path)
    layer = GraphLayer(
        name=node.name,
        operator=_OPERATORS.get(operator, operator),
        tensor=node.name,
        elements=values[0].size,
    )
    source = where or ("" if own is None else _defined(own))
    return Seen(layer=layer, values=np.stack(values), module=path, source=source)


def _module_of(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _defined(module: nn.Module) -> str:
    try:
        _, line = inspect.getsourcelines(type(module).forward)
        return f"{inspect.getsourcefile(type(module))}:{line}"
    except (OSError, TypeError):
        return ""


def _hooked(module: nn.Module, rows: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return what each module without children gave, in the order of the calls; the first call of each."""
    found: dict[str, list[NDArray[Any]]] = {}
    handles = []

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                found.setdefault(path, []).append(output.detach().cpu().float().numpy().copy())

        return hook

    for path, one in module.named_modules():
        if path and not any(True for _ in one.children()):
            handles.append(one.register_forward_hook(keep(path)))
    try:
        answers(module, rows)
    finally:
        for handle in handles:
            handle.remove()
    count = len(next(iter(rows.values())))
    return {path: np.stack(values) for path, values in found.items() if len(values) == count}


def _feeds(rows: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, Tensor]]:
    for at in range(len(next(iter(rows.values())))):
        yield {name: torch.from_numpy(np.array(array[at])) for name, array in rows.items()}


def _called(module: nn.Module, feeds: Mapping[str, Tensor], *, by_name: bool | None = None) -> Any:
    where = next((weight.device for weight in module.parameters()), torch.device("cpu"))
    moved = {name: tensor.to(where) for name, tensor in feeds.items()}
    if by_name is None:
        by_name = moved.keys() <= inspect.signature(module.forward).parameters.keys()
    return module(**moved) if by_name else module(*moved.values())


def _tensors(found: Any) -> list[NDArray[Any]]:
    return [one.detach().cpu().numpy() for one in _pytree.tree_leaves(found) if isinstance(one, Tensor)]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = [one for one in module.modules() if one.training]
    module.eval()
    try:
        yield
    finally:
        for one in training:
            one.training = True


def rows_of(files: Mapping[str, Path]) -> dict[str, NDArray[Any]]:
    """Open inputs, a row an inference."""
    return {name: np.load(path, mmap_mode="r", allow_pickle=False) for name, path in files.items()}
