"""A folded student that computes as its integer kernels will: what is trained, and what grids are recorded from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edgekd.distillation.quantized.calibrating import activation_grid, observed, refuse_constant
from edgekd.distillation.quantized.grids import ActivationGrid, WeightGrid
from edgekd.distillation.quantized.placement import Kind, kinds_of, rounded_nodes, tensor_names
from edgekd.distillation.quantized.rounding import EXACT, Carried, Term, rounded
from edgekd.errors import ModelError
from edgekd.values.quantization import Grid, Scheme


class QuantizedStudent(nn.Module):
    """A student whose weights and activations are rounded to grids, with gradients straight through.

    In evaluation mode every sum of products is exact, so that the integers between its layers are those that a
    runtime's kernels give which round as `rounding` says.
    """

    traced: fx.GraphModule

    def __init__(self, student: nn.Module, scheme: Scheme) -> None:
        """Wrap a copy of a folded student; its grids are still to be calibrated, or loaded.

        Raises:
            ModelError: it cannot be traced, or has nothing to quantise.

        """
        super().__init__()
        self.scheme = scheme
        self.traced = _traced(student)
        self.traced.requires_grad_(requires_grad=True)
        self._kinds, self._names = kinds_of(self.traced), tensor_names(self.traced)
        layers = [node for node in self.traced.graph.nodes if self._kinds[node.name] is Kind.WEIGHTED]
        if not layers:
            raise ModelError(
                f"{type(student).__name__} has nothing to quantise",
                cause="it has no linear layer and no convolution",
                mend="keep it in fp32",
            )
        self._layers = {node.name: str(node.target) for node in layers}
        self._rounded = rounded_nodes(self.traced, self._kinds, scheme)
        self.activations = nn.ModuleDict({_key(name): ActivationGrid(scheme) for name in self._rounded})
        self.weights = nn.ModuleDict(
            {_key(name): WeightGrid(len(self._layer(name).weight), scheme) for name in self._layers}
        )

    @torch.no_grad()
    def calibrate(self, inputs: Tensor) -> None:
        """Take from the float weights, and from a batch of inputs, the scales that lose least.

        Raises:
            DataError: the inputs are constant or not finite.
            ModelError: a weight or an activation is not finite.

        """
        refuse_constant(inputs)
        for name, weight in self.traced.named_parameters():
            if not weight.isfinite().all():
                raise ModelError(f"{name} holds a value that is not finite", mend="train the student again")
        for name in self._layers:
            self._weight_grid(name).set(self._layer(name).weight)
        for name, seen in observed(self.traced, self._rounded, inputs).items():
            self._activation_grid(name).set(activation_grid(self._names[name], seen, self.scheme))

    def grids(self) -> dict[str, Grid]:
        """Return the grids by tensor of the exported graph: parameters of layers, and what nodes give."""
        found, own = {}, {name: name for name in self._rounded}
        for node in self.traced.graph.nodes:
            kind, sources = self._kinds[node.name], [own.get(one.name) for one in node.all_input_nodes]
            if kind in {Kind.PASSING, Kind.NOTHING} and sources[0] is not None:
                own[node.name] = sources[0]  # the same integers under another name
            if node.name in own and kind is not Kind.NOTHING:
                found[self._names[node.name]] = self._activation_grid(own[node.name]).recorded()
            if kind is Kind.WEIGHTED and sources[0] is not None:
                scale = self._activation_grid(sources[0]).log_scale.exp()
                bias = self._integer_bias(self._layer(node.name))
                weight = self._weight_grid(node.name).recorded(bias, scale)
                found[f"{self._names[node.name].removesuffix('.out')}.weight"] = weight
        return found

    def train(self, mode: bool = True) -> QuantizedStudent:  # noqa: FBT001, FBT002 - as torch has it
        """Train weights and scales; norms that could not be folded, and dropout, stay as they are at inference."""
        super().train(mode)
        self.traced.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs to what the student gives, in the arithmetic of integer kernels."""
        with torch.autocast(inputs.device.type, enabled=False):  # integers above 256 do not fit into bf16
            carried: dict[str, Carried] = {}
            for node in self.traced.graph.nodes:
                if node.op == "output":
                    break
                found = _plain(inputs) if node.op == "placeholder" else self._answer(node, carried)
                if _key(node.name) in self.activations:
                    found = self._activation_grid(node.name)(found)
                carried[node.name] = found
            return carried[node.all_input_nodes[0].name].real

    def _answer(self, node: fx.Node, carried: Mapping[str, Carried]) -> Carried:
        kind, sources = self._kinds[node.name], [carried[one.name] for one in node.all_input_nodes]
        if kind is Kind.WEIGHTED:
            return self._weighted(node.name, sources[0])
        if kind is Kind.SUM:
            return _sum(*sources)
        if kind is Kind.POOL:
            return _pooled(sources[0])
        if kind is Kind.RELU:
            return sources[0]._replace(rectified=True)
        return sources[0] if kind is Kind.NOTHING else self._other(node, sources)

    def _other(self, node: fx.Node, sources: list[Carried]) -> Carried:
        """Run what multiplies and adds nothing: on integers where it hands them on, and else on floats."""
        if self._kinds[node.name] is Kind.PASSING and (term := _single(sources[0])) is not None:
            numbers = _run(node, self.traced, {node.all_input_nodes[0].name: term.numbers})
            return Carried(terms=(Term(numbers, term.factor),))
        reals = {one.name: value.real for one, value in zip(node.all_input_nodes, sources)}
        return _plain(_run(node, self.traced, reals))

    def _weighted(self, name: str, carried: Carried) -> Carried:
        layer, grid = self._layer(name), self._weight_grid(name)
        ((inputs, scale),) = carried.terms
        assert scale is not None  # noqa: S101 - what weights multiply is always on a grid
        weight, scales = grid(layer.weight, grid.scales(self._integer_bias(layer), scale))
        sums = self._products(layer, inputs, weight)
        channels = (-1, *[1] * (layer.weight.ndim - 2))  # of the outputs (B, O, ...)
        factor = (scale * scales).view(channels)
        if layer.bias is None:
            return Carried(terms=(Term(sums.float(), factor),))
        bias = layer.bias.view(channels)
        if self.scheme.everywhere:
            return Carried(terms=(Term((sums + rounded(bias / factor)).float(), factor),))
        return _plain(sums.float() * factor + bias)

    def _products(self, layer: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        """Multiply integers: in float64 where float32 might not hold a sum, but not in training."""
        if not self.training:
            largest = weight.detach().abs().flatten(1).sum(dim=1).max() * inputs.detach().abs().max()
            if largest >= EXACT:
                return _multiplied(layer, inputs.double(), weight.double())
        return _multiplied(layer, inputs, weight)

    def _integer_bias(self, layer: Any) -> Tensor | None:
        return cast("Tensor | None", layer.bias) if self.scheme.everywhere else None

    def _layer(self, name: str) -> Any:
        return self.traced.get_submodule(self._layers[name])

    def _weight_grid(self, name: str) -> WeightGrid:
        return cast("WeightGrid", self.weights[_key(name)])

    def _activation_grid(self, name: str) -> ActivationGrid:
        return cast("ActivationGrid", self.activations[_key(name)])


def _traced(student: nn.Module) -> fx.GraphModule:
    name = type(student).__name__
    try:
        traced = fx.symbolic_trace(copy.deepcopy(student).eval())
    except Exception as error:  # whatever a forward raises when it is given proxies
        cause = f"{type(error).__name__}: {error}"[:300]
        mend = "quantise it after training, or keep it in fp32"
        raise ModelError(f"{name} cannot be traced", cause=cause, mend=mend) from error
    inputs = sum(node.op == "placeholder" for node in traced.graph.nodes)
    outputs = sum(len(node.all_input_nodes) for node in traced.graph.nodes if node.op == "output")
    if (inputs, outputs) != (1, 1):
        raise ModelError(
            f"{name} cannot be distilled quantised",
            cause=f"it has {inputs} inputs and {outputs} outputs, and one each is taken",
            mend="quantise it after training",
        )
    return traced


def _run(node: fx.Node, traced: fx.GraphModule, given: Mapping[str, Tensor]) -> Tensor:
    """Run one operation on tensors by the names of the nodes that gave them."""
    arguments = fx.node.map_arg(node.args, lambda one: given[one.name])
    named = fx.node.map_arg(node.kwargs, lambda one: given[one.name])
    found: Any
    if node.op == "call_module":
        found = traced.get_submodule(str(node.target))(*arguments, **named)
    elif node.op == "call_method":
        found = getattr(arguments[0], str(node.target))(*arguments[1:], **named)
    elif node.op == "get_attr":
        found = cast("Any", fx.Interpreter(traced)).fetch_attr(str(node.target))
    else:
        found = cast("Any", node.target)(*arguments, **named)
    return cast("Tensor", found)


def _plain(tensor: Tensor) -> Carried:
    return Carried(terms=(Term(tensor),))


def _single(carried: Carried) -> Term | None:
    """Return the numbers and one factor for all of them, where a tensor is no more than that."""
    ((numbers, factor), *others) = carried.terms
    whole = not others and not carried.rectified and (factor is None or factor.ndim == 0)
    return Term(numbers, factor) if whole else None


def _sum(first: Carried, second: Carried) -> Carried:
    """Add two tensors; what is rectified before the sum is worked out first."""
    parts = [(Term(one.real),) if one.rectified else one.terms for one in (first, second)]
    return Carried(terms=(*parts[0], *parts[1]))


def _pooled(carried: Carried) -> Carried:
    """Average over all places: the sum of the integers, with the number of places in the factor."""
    ((numbers, scale),) = carried.terms
    assert scale is not None  # noqa: S101 - what is pooled is always on a grid
    places = numbers.shape[-1] * numbers.shape[-2]
    return Carried(terms=(Term(numbers.sum(dim=(-2, -1), keepdim=True), scale / places),))


def _multiplied(layer: Any, inputs: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(inputs, weight)
    return cast("Tensor", layer._conv_forward(inputs, weight, None))  # noqa: SLF001 - pads as the layer does


def _key(name: str) -> str:
    """Return what a ModuleDict takes for any name: not one of its own methods."""
    return f"of_{name}"
