"""Which operations of a student compute on integers, and which tensors have to be rounded for it."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import Enum

import torch
import torch.nn.functional as F
from torch import fx, nn

from edgekd.values.quantization import Scheme

INPUT = "images"  # the tensor that a student is given

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)
_NOTHING = (nn.Identity, nn.Dropout)  # are not in an exported graph
_PASSING = (*_NOTHING, nn.Flatten, nn.MaxPool2d)
_SUMS = {operator.add, operator.iadd, torch.add}
_RELUS = {F.relu, torch.relu}


class Kind(Enum):
    """What an operation does to integers."""

    WEIGHTED = "weighted"  # multiplies them with integers
    SUM = "sum"  # of two tensors that were computed
    POOL = "pool"  # the mean over all places
    RELU = "relu"
    PASSING = "passing"  # hands the same integers on
    NOTHING = "nothing"  # hands the same tensor on
    FLOAT = "float"  # anything else: it is given floats


def kinds_of(traced: fx.GraphModule) -> dict[str, Kind]:
    """Say by the names of a trace's nodes what each does."""
    return {node.name: _kind_of(node, traced) for node in traced.graph.nodes}


def tensor_names(traced: fx.GraphModule) -> dict[str, str]:
    """Name the tensor that each node gives as the exported graph does; the input is INPUT."""
    names, used = {}, Counter[str]()
    for node in traced.graph.nodes:
        if node.op == "call_module":
            place = str(node.target)
        else:
            stack = list(node.meta.get("nn_module_stack", {}).values())
            place = f"{stack[-1][0] if stack else ''}.{node.name}".lstrip(".")
        used[place] += 1
        again = "" if used[place] == 1 else f".again{used[place] - 1}"
        names[node.name] = INPUT if node.op == "placeholder" else f"{place}{again}.out"
    return names


def rounded_nodes(traced: fx.GraphModule, kinds: Mapping[str, Kind], scheme: Scheme) -> tuple[str, ...]:
    """Return the nodes whose tensors are rounded to a grid of their own, in order.

    Where a scheme rounds everywhere, that is what any integer operation reads. Otherwise it is what weights multiply,
    what is pooled, and the shortcut of a residual sum, so that the sum is fused into the other branch.
    """
    nodes = list(traced.graph.nodes)
    shortcuts = dict(_shortcuts(nodes, kinds))
    passing = (Kind.PASSING, Kind.NOTHING)
    wanted: set[str] = set()
    for node in reversed(nodes):  # readers before what they read
        kind = kinds[node.name]
        asks = kind in {Kind.WEIGHTED, Kind.POOL} or (kind is Kind.SUM and scheme.everywhere)
        asks = asks or (kind in passing and node.name in wanted)
        wanted |= {one.name for one in node.all_input_nodes if asks or shortcuts.get(node.name) == one.name}
    return tuple(node.name for node in nodes if node.name in wanted and kinds[node.name] not in passing)


def _kind_of(node: fx.Node, traced: fx.GraphModule) -> Kind:
    if node.op == "call_module":
        return _kind_of_module(traced.get_submodule(str(node.target)))
    if node.op == "call_function" and node.target in _SUMS:
        sources = node.all_input_nodes
        whole = len(sources) == len(node.args) == 2 and not node.kwargs  # noqa: PLR2004 - no number among them
        return Kind.SUM if whole and all(one.op != "get_attr" for one in sources) else Kind.FLOAT
    if (node.op == "call_function" and node.target in _RELUS) or (node.op, node.target) == (
        "call_method",
        "relu",
    ):
        return Kind.RELU
    flattens = node.target == "flatten" if node.op == "call_method" else node.target is torch.flatten
    return Kind.PASSING if flattens else Kind.FLOAT


def _kind_of_module(module: nn.Module) -> Kind:
    if isinstance(module, _WEIGHTED):
        return Kind.WEIGHTED
    if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
        return Kind.POOL
    if isinstance(module, nn.ReLU):
        return Kind.RELU
    if isinstance(module, _NOTHING):
        return Kind.NOTHING
    return Kind.PASSING if isinstance(module, _PASSING) else Kind.FLOAT


def _shortcuts(nodes: list[fx.Node], kinds: Mapping[str, Kind]) -> Iterator[tuple[str, str]]:
    """Yield each residual sum and its shortcut: the branch that is not a weighted operation's for this sum alone.

    Where both are, it is the one with fewer operations behind it.
    """
    depth: dict[fx.Node, int] = {}
    for node in nodes:
        depth[node] = 1 + max((depth[source] for source in node.all_input_nodes), default=0)
        if kinds[node.name] is not Kind.SUM:
            continue
        branches = node.all_input_nodes
        fusible = [kinds[one.name] is Kind.WEIGHTED and len(one.users) == 1 for one in branches]
        if all(fusible):
            yield node.name, min(branches, key=lambda branch: depth[branch]).name
        elif any(fusible):
            yield node.name, branches[fusible.index(False)].name
