"""Read the outline of an .onnx file, without its weights and without onnx.

A device need not have onnx, and a parser of our own can be held to limits: it walks the file's protobuf
fields through a memory map, keeps names, shapes and small integers, and skips every weight.
Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgekd.errors import ModelError

_MOST_FIELDS = 5_000_000  # seconds of walking; real models have fewer than a million
_MOST_NODES = 100_000
_MOST_TENSORS = 400_000
_MOST_DEPTH = 32  # of nested messages of one kind: subgraphs of subgraphs
_MOST_INTEGERS = 4096  # kept of one attribute or tensor: more than any stride or rank
_VARINT, _EIGHT, _SPAN, _FOUR = 0, 1, 2, 5  # wire types; groups (3, 4) are no part of ONNX

DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "object",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Value:
    """A declared input or output of the main graph; a `None` dimension is dynamic."""

    name: str
    element_type: int  # onnx.TensorProto's number; 0 where it is no tensor
    shape: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class Node:
    """An operator: its name, how many inputs are connected, its integer attributes, and what it is wired to."""

    operator: str
    domain: str
    inputs: int
    integers: dict[str, tuple[int, ...]]
    names: tuple[str, ...] = ()  # of the first two inputs
    output: str = ""  # the first
    element_type: int = 0  # of the tensor that a Constant holds


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A stored tensor, without its content."""

    name: str
    dims: tuple[int, ...]
    location: str | None  # of external data
    element_type: int = 0  # onnx.TensorProto's number


@dataclass(kw_only=True)
class Outline:
    """All nodes, tensors and shapes of a model, subgraphs and functions included."""

    nodes: list[Node] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    shapes: list[tuple[int | None, ...]] = field(default_factory=list)  # declared anywhere
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    constants: set[str] = field(default_factory=set)  # initializers of the main graph
    graphs: int = 0


def outline(path: Path) -> Outline:
    """Walk a model file.

    Raises:
        ModelError: it is empty, no protobuf, or nested or split beyond all reason.

    """
    if path.stat().st_size == 0:
        raise ModelError(f"{path.name} is empty", mend="export the model again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        walk = _Walk(content)
        try:
            walk.model(0, len(content))
        except _MalformedError as error:
            mend = "export the model again; a download may be incomplete"
            raise ModelError(f"{path.name} is not a valid .onnx file", cause=str(error), mend=mend) from None
    if not walk.found.graphs:
        raise ModelError(
            f"{path.name} holds no graph", cause="it is not a model", mend="export the model again"
        )
    return walk.found


class _MalformedError(ValueError):
    """Bytes that are no protobuf, or more of it than we are willing to read."""


class _Walk:
    """One pass over a file; spans are (start, end) offsets."""

    def __init__(self, content: mmap.mmap) -> None:
        self._bytes = content
        self._fields = 0
        self.found = Outline()

    def model(self, start: int, end: int) -> None:
        for number, value in self._spans(start, end):
            if number == 7:  # noqa: PLR2004 - graph
                self._graph(*value, depth=0)
            elif number == 25:  # noqa: PLR2004 - functions
                self._function(*value)
            elif number == 20:  # noqa: PLR2004 - training_info holds two graphs
                for inner, span in self._spans(*value):
                    if inner in {1, 2}:
                        self._graph(*span, depth=1)

    def _graph(self, start: int, end: int, depth: int) -> None:
        if depth > _MOST_DEPTH:
            raise _MalformedError(f"graphs are nested more than {_MOST_DEPTH} deep")
        self.found.graphs += 1
        for number, span in self._spans(start, end):
            if number == 1:
                self._node(*span, depth=depth)
            elif number == 5:  # noqa: PLR2004 - initializer
                self._tensor(*span, constant=depth == 0)
            elif number == 15:  # noqa: PLR2004 - sparse_initializer
                self._sparse(*span, constant=depth == 0)
            elif number in {11, 12, 13}:  # input, output, value_info
                self._value(
                    *span, kept={11: self.found.inputs, 12: self.found.outputs}.get(number), depth=depth
                )

    def _function(self, start: int, end: int) -> None:
        for number, span in self._spans(start, end):
            if number == 7:  # noqa: PLR2004 - node
                self._node(*span, depth=1)
            elif number == 11:  # noqa: PLR2004 - attribute_proto
                self._attribute(*span, depth=1)
            elif number == 12:  # noqa: PLR2004 - value_info
                self._value(*span, kept=None, depth=1)

    def _node(self, start: int, end: int, depth: int) -> None:
        operator, domain, output, inputs = "", "", "", 0
        names: list[str] = []
        integers: dict[str, tuple[int, ...]] = {}
        stored = len(self.found.tensors)
        for number, span in self._spans(start, end):
            if number == 1:
                inputs += span[1] > span[0]  # an empty name is an input left out
                names += [self._text(span)] if len(names) < 2 else []  # noqa: PLR2004 - data and weights
            elif number == 2:  # noqa: PLR2004 - output
                output = output or self._text(span)
            elif number == 4:  # noqa: PLR2004 - op_type
                operator = self._text(span)
            elif number == 7:  # noqa: PLR2004 - domain
                domain = self._text(span)
            elif number == 5:  # noqa: PLR2004 - attribute
                name, values = self._attribute(*span, depth=depth)
                integers[name] = integers.get(name, ()) + values
        if len(self.found.nodes) >= _MOST_NODES:
            raise _MalformedError(f"it has more than {_MOST_NODES} nodes")
        held = self.found.tensors[stored:]
        self.found.nodes.append(
            Node(
                operator=operator,
                domain=domain,
                inputs=inputs,
                integers=integers,
                names=tuple(names),
                output=output,
                element_type=held[0].element_type if held else 0,
            )
        )

    def _attribute(self, start: int, end: int, depth: int) -> tuple[str, tuple[int, ...]]:
        name, integers = "", []
        for number, value in self._fields_of(start, end):
            if number in {3, 8}:  # i, ints
                integers.extend(self._integers(value))
            elif isinstance(value, int):
                continue
            elif number == 1:
                name = self._text(value)
            elif number in {5, 10}:  # t, tensors
                self._tensor(*value, constant=False)
            elif number in {6, 11}:  # g, graphs
                self._graph(*value, depth=depth + 1)
            elif number in {22, 23}:  # sparse_tensor, sparse_tensors
                self._sparse(*value, constant=False)
        return name, tuple(integers[:_MOST_INTEGERS])

    def _sparse(self, start: int, end: int, *, constant: bool) -> None:
        for number, value in self._fields_of(start, end):
            if number == 3:  # noqa: PLR2004 - dims
                self._store(Tensor(name="", dims=tuple(self._integers(value)), location=None))
            elif number in {1, 2} and not isinstance(value, int):  # values, indices
                self._tensor(*value, constant=constant)

    def _tensor(self, start: int, end: int, *, constant: bool) -> None:
        name, dims, location, element_type = "", [], None, 0
        for number, value in self._fields_of(start, end):
            if number == 1:
                dims.extend(self._integers(value))
            elif isinstance(value, int):
                element_type = value if number == 2 else element_type  # noqa: PLR2004 - data_type
            elif number == 8:  # noqa: PLR2004 - name
                name = self._text(value)
            elif number == 13:  # noqa: PLR2004 - external_data
                found = self._location(*value)
                location = location if found is None else found
        self._store(Tensor(name=name, dims=tuple(dims), location=location, element_type=element_type))
        if constant:
            self.found.constants.add(name)

    def _store(self, tensor: Tensor) -> None:
        if len(self.found.tensors) >= _MOST_TENSORS:
            raise _MalformedError(f"it has more than {_MOST_TENSORS} tensors")
        self.found.tensors.append(tensor)

    def _location(self, start: int, end: int) -> str | None:
        entry = {number: self._text(span) for number, span in self._spans(start, end)}
        return entry.get(2, "") if entry.get(1) == "location" else None

    def _value(self, start: int, end: int, *, kept: list[Value] | None, depth: int) -> None:
        name, element_type = "", 0
        shape: tuple[int | None, ...] = ()
        for number, span in self._spans(start, end):
            if number == 1:
                name = self._text(span)
            elif number == 2:  # noqa: PLR2004 - type
                element_type, shape = self._type(*span)
        self.found.shapes.append(shape)
        if kept is not None and depth == 0:
            kept.append(Value(name=name, element_type=element_type, shape=shape))

    def _type(self, start: int, end: int) -> tuple[int, tuple[int | None, ...]]:
        element_type, dims = 0, []
        for number, tensor in self._spans(start, end):
            if number != 1:  # a sequence, a map, an optional
                continue
            for inner, value in self._fields_of(*tensor):
                if inner == 1 and isinstance(value, int):
                    element_type = value
                elif inner == 2 and not isinstance(value, int):  # noqa: PLR2004 - shape
                    dims += [self._dim(*span) for number, span in self._spans(*value) if number == 1]
        return element_type, tuple(dims)

    def _dim(self, start: int, end: int) -> int | None:
        sizes = [value for number, value in self._fields_of(start, end) if number == 1]
        return _signed(sizes[-1]) if sizes and isinstance(sizes[-1], int) else None

    def _text(self, span: tuple[int, int]) -> str:
        return self._bytes[span[0] : min(span[1], span[0] + 4096)].decode(errors="replace")

    def _integers(self, value: int | tuple[int, int]) -> list[int]:
        """Read a repeated integer, packed or not; of a long one only the start."""
        if isinstance(value, int):
            return [_signed(value)]
        at, end = value
        found: list[int] = []
        while at < end and len(found) < _MOST_INTEGERS:
            number, at = self._varint(at, end)
            found.append(_signed(number))
        return found

    def _spans(self, start: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
        for number, value in self._fields_of(start, end):
            if not isinstance(value, int):
                yield number, value

    def _fields_of(self, at: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
        while at < end:
            self._fields += 1
            if self._fields > _MOST_FIELDS:
                raise _MalformedError(f"it has more than {_MOST_FIELDS} fields")
            key, at = self._varint(at, end)
            number, kind = key >> 3, key & 7
            if kind == _VARINT:
                value, at = self._varint(at, end)
                yield number, value
                continue
            size = {_EIGHT: 8, _FOUR: 4}.get(kind)
            if kind == _SPAN:
                size, at = self._varint(at, end)
            if size is None or number == 0 or size > end - at:
                raise _MalformedError(f"the bytes at {at} are no protobuf field")
            at += size
            if kind == _SPAN:
                yield number, (at - size, at)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:  # noqa: PLR2004 - ten groups of seven bits hold any 64-bit number
            byte = self._bytes[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004 - the last group
                return value, at
            shift += 7
        raise _MalformedError(f"the bytes at {at} are no protobuf number")


def _signed(number: int) -> int:
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number
