"""Write a module as an ONNX graph, node by node, each named after its module, and check what was written."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import helper
from torch import Tensor, fx, nn

from edgekd.errors import ModelError
from edgekd.stages.emit.functions import FUNCTIONS, METHODS
from edgekd.stages.emit.graph import KINDS, Call, Known
from edgekd.stages.emit.modules import HANDING_ON, MODULES
from edgekd.stages.emit.replay import replay

__all__ = ["OPSET", "emit"]

OPSET = 17  # understood by every runtime we target, JetPack 6's TensorRT 10.3 included
_IR_VERSION = 8  # the one that came with opset 17
_RESHAPING = {"flatten", "reshape", "squeeze", "unsqueeze", "view"}


def emit(module: nn.Module, inputs: Mapping[str, tuple[int, ...]], outputs: Sequence[str]) -> onnx.ModelProto:
    """Return the ONNX model of a folded student, after computing it once by ONNX's own definitions.

    Every tensor that module and graph have in common is held against the module's, on one example.

    Args:
        module: of the layers in `emit.modules.MODULES` and the functions in `emit.functions`; in evaluation mode.
            It returns a tensor, several in order, or several by name.
        inputs: whole shapes by name. Where all the names are parameters of `forward` they are passed by name,
            otherwise in order. What an embedding or a one-hot reads is int64, anything else float32.
        outputs: their names, in the order in which `forward` returns them.

    Raises:
        ModelError: the module does something else, or what was written does not compute the same.

    """
    if any(tensor.device.type != "cpu" for tensor in module.state_dict().values()):
        module = copy.deepcopy(module).cpu()  # a GPU's sums are not exact enough to check against
    traced = fx.symbolic_trace(module)
    names = _names(traced, inputs)
    example = {name: _example(traced, node, inputs[name]) for node, name in names.items()}
    run = _Run(traced)
    with torch.inference_mode():
        run.run(*(example[name] for name in names.values()))
    written = _Written(traced, run.values, names, outputs)
    replay(written.model, example, written.tensors)
    return written.model


class _Run(fx.Interpreter):
    """Runs a trace and keeps what every node gave, as it was then: a later one may write over it."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        several = isinstance(found, tuple | list)
        self.values[n] = tuple(map(_kept, found)) if several else _kept(found)
        return found


def _kept(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


class _Written:
    """The graph of a trace, and the tensors that both have."""

    def __init__(
        self,
        traced: fx.GraphModule,
        values: Mapping[fx.Node, Any],
        names: Mapping[fx.Node, str],
        outputs: Sequence[str],
    ) -> None:
        self._traced, self._values = traced, values
        self._told: dict[fx.Node, Any] = {
            node: Known(name=name, value=values[node]) for node, name in names.items()
        }
        self._used: Counter[str] = Counter()
        results = list(_leaves(next(node for node in traced.graph.nodes if node.op == "output").args[0]))
        if len(results) != len(outputs):
            raise ModelError(f"the student gives {len(results)} tensors, and {len(outputs)} names are given")
        self._wanted = {self._source(node): name for node, name in zip(results, outputs)}
        self.tensors: dict[str, Tensor] = {}
        self.model = _empty([self._told[node] for node in names], values, dict(zip(outputs, results)))
        for node in traced.graph.nodes:
            if node.op not in {"placeholder", "output"}:
                self._told[node] = self._answer(node)
        for name, node in zip(outputs, results):
            if self._told[node].name != name:  # an input, a weight, a part, or a tensor given twice
                own = helper.make_node("Identity", [self._told[node].name], [name], name=name)
                self.model.graph.node.append(own)
            self.tensors[name] = values[node]

    def _answer(self, node: fx.Node) -> Any:
        """Write one node of the trace; return what later ones read of it."""
        value = self._values[node]
        if not any(isinstance(one, Tensor) for one in _leaves(value)):
            return value  # a size, and what is reckoned with it
        place = self._place(node)
        output = self._wanted.get(node, f"{place}.out")
        call = Call(graph=self.model.graph, name=place, output=output, value=value)
        found = self._write(node, call)
        if isinstance(found, str):
            found = Known(name=found, value=value)
        for one in found if isinstance(found, tuple) else (found,):
            if node.op != "get_attr":
                self.tensors.setdefault(one.name, one.value)
        return found

    def _write(self, node: fx.Node, call: Call) -> Any:
        if node.op == "get_attr":
            return call.keep("value", call.value)
        told: Callable[[Any], Any] = self._told.__getitem__
        args: tuple[Any, ...] = fx.node.map_arg(node.args, told)
        given: dict[str, Any] = fx.node.map_arg(node.kwargs, told)
        kwargs = {key: one for key, one in given.items() if one is not None and one is not False}
        writer: Callable[..., Any] | None
        if node.op == "call_module":
            module = self._traced.get_submodule(str(node.target))
            writer, what = MODULES.get(type(module)), f"a {type(module).__name__}"
            args = (module, *args)
        else:
            known: Mapping[Any, Callable[..., Any]] = METHODS if node.op == "call_method" else FUNCTIONS
            writer, what = known.get(node.target), str(node.format_node())
        if writer is None:
            raise call.refuse(f"there is no ONNX for {what} here")
        try:
            return writer(call, *args, **kwargs)
        except (TypeError, AttributeError, ValueError) as error:  # an argument that its writer does not take
            raise call.refuse(f"there is no ONNX for {node.format_node()} here: {error}") from error

    def _source(self, node: fx.Node) -> fx.Node:
        """Return the node whose tensor this one hands on as it is."""
        while node.op == "call_module" and isinstance(
            self._traced.get_submodule(str(node.target)), HANDING_ON
        ):
            (node,) = node.all_input_nodes
        return node

    def _place(self, node: fx.Node) -> str:
        """Return the path of the module, or of the module whose forward calls this function; once each."""
        if node.op == "call_module":
            path = str(node.target)
        else:
            stack = list(node.meta.get("nn_module_stack", {}).values())
            path = f"{stack[-1][0] if stack else ''}.{node.name}".lstrip(".")
        self._used[path] += 1
        return path if self._used[path] == 1 else f"{path}.again{self._used[path] - 1}"


def _empty(
    inputs: Sequence[Known], values: Mapping[fx.Node, Any], outputs: Mapping[str, fx.Node]
) -> onnx.ModelProto:
    """Return a model with its signature and nothing in it."""
    takes = {one.name: one.value for one in inputs}
    gives = {name: values[node] for name, node in outputs.items()}
    told = [
        [helper.make_tensor_value_info(name, KINDS[one.dtype], one.shape) for name, one in side.items()]
        for side in (takes, gives)
    ]
    model = helper.make_model(
        helper.make_graph([], "student", *told),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="edgekd",
    )
    model.ir_version = _IR_VERSION
    return model


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def _names(traced: fx.GraphModule, inputs: Mapping[str, tuple[int, ...]]) -> dict[fx.Node, str]:
    """Return the inputs' names by the trace's, in the order in which `forward` takes them."""
    places = [node for node in traced.graph.nodes if node.op == "placeholder"]
    if len(places) != len(inputs):
        raise ModelError(f"the student takes {len(places)} inputs, and {len(inputs)} shapes are given")
    by_name = {str(node.target) for node in places} == inputs.keys()
    return {node: str(node.target) if by_name else name for node, name in zip(places, inputs)}


def _example(traced: fx.GraphModule, node: fx.Node, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    choices = _choices(traced, node)
    if choices is not None:
        return torch.randint(choices, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def _choices(traced: fx.GraphModule, node: fx.Node) -> int | None:
    """Return how many values an input of indices may take; None where it is no such input."""
    for user in node.users:
        if user.op == "call_module" and isinstance(
            found := traced.get_submodule(str(user.target)), nn.Embedding
        ):
            return found.num_embeddings
        if user.target is F.one_hot:
            return int(user.kwargs.get("num_classes", user.args[-1]))  # type: ignore[arg-type]
        if user.op == "call_method" and user.target in _RESHAPING:
            return _choices(traced, user)
    return None
