"""Find every use of TensorRT in a source file, with the type it is used on, by reading the source.

Types come from annotations (`config: trt.IBuilderConfig`), from constructors, and from what the bindings say a method
or property returns. What cannot be typed is not forgotten: an attribute on an expression of unknown type is reported
where any class of TensorRT has one of that name, and every way round attributes (`getattr`) is reported as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.backends.bindings.signatures import returned, signatures

_ROUNDABOUT = {"getattr", "setattr", "hasattr", "delattr", "vars", "eval", "exec", "globals", "locals"}


@dataclass(frozen=True, kw_only=True)
class Use:
    """One class or member in one place."""

    owner: str  # empty for the module itself
    name: str
    line: int
    fault: str = ""  # why the bindings do not have it, or not so


@dataclass(kw_only=True)
class Reader:
    """Reads one file against the bindings of one version."""

    bindings: dict[str, Any]
    ours: dict[str, str]  # our subclasses, in any file: their name and what they derive from
    added: dict[str, set[str]]  # by what they derive from: the attributes that they add
    uses: list[Use] = field(default_factory=list)
    untyped: list[tuple[str, int]] = field(default_factory=list)
    _types: dict[str, str] = field(default_factory=dict)  # of names and of `self.x` in the scope being read
    _attributes: dict[str, str] = field(default_factory=dict)  # of the class being read

    def read(self, source: str) -> Reader:
        """Read a whole file."""
        tree = ast.parse(source)
        for node in tree.body:
            self._statement(node)
        return self

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.ClassDef):
            self._class(node)
        elif isinstance(node, ast.FunctionDef):
            self._function(node, "")
        else:
            self._walk(node)

    def _class(self, node: ast.ClassDef) -> None:
        base = next((self._annotated(one) for one in node.bases if self._annotated(one)), "")
        for one in node.bases:
            self._walk(one)
        self._attributes = {}
        for inner in ast.walk(node):
            if (
                isinstance(inner, ast.AnnAssign)
                and _self_attribute(inner.target)
                and self._annotated(inner.annotation)
            ):
                self._attributes[_self_attribute(inner.target)] = self._annotated(inner.annotation)
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef):
                self._function(inner, base)
            else:
                self._walk(inner)
        self._attributes = {}

    def _function(self, node: ast.FunctionDef, base: str) -> None:
        outer, self._types = self._types, dict(self._types)
        own = [one.arg for one in node.args.args if one.arg != "self"]
        if base and not node.name.startswith("_") and node.name in self._members(base):
            self._override(node, base, own)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            if argument.annotation is not None:
                self._walk(argument.annotation)
                self._types[argument.arg] = self._annotated(argument.annotation)
        if node.returns is not None:
            self._walk(node.returns)
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef):
                self._function(statement, "")
            else:
                self._walk(statement)
        self._types = outer

    def _override(self, node: ast.FunctionDef, base: str, own: list[str]) -> None:
        """Note what TensorRT will call: it must have our parameters, by name."""
        found = signatures(self._members(base)[node.name].get("doc", ""), node.name)
        fits = any([one.name for one in overload.parameters] == own for overload in found)
        fault = "" if fits else f"our {node.name} takes {own}"
        self.uses.append(Use(owner=base, name=node.name, line=node.lineno, fault=fault))

    def _walk(self, node: ast.AST) -> None:
        """Read expressions and statements in the order they are written."""
        if isinstance(node, ast.AnnAssign):
            self._walk(node.annotation)
            if node.value is not None:
                self._walk(node.value)
            self._assign(node.target, self._annotated(node.annotation))
            return
        if isinstance(node, ast.Assign):
            self._walk(node.value)
            for target in node.targets:
                self._assign(target, self._type(node.value))
            return
        if isinstance(node, ast.Call):
            self._call(node)
            return
        if isinstance(node, ast.Attribute):
            self._attribute(node)
            return
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            self._statement(node)
            return
        for inner in ast.iter_child_nodes(node):
            self._walk(inner)

    def _assign(self, target: ast.expr, kind: str) -> None:
        if isinstance(target, ast.Name):
            self._types[target.id] = kind
        elif isinstance(target, ast.Tuple):
            for one in target.elts:
                self._assign(one, "")
        else:
            self._walk(target)

    def _call(self, node: ast.Call) -> None:
        for one in node.args:
            self._walk(one)
        for keyword in node.keywords:
            self._walk(keyword.value)
        if isinstance(node.func, ast.Name) and node.func.id in _ROUNDABOUT:
            self.untyped.append((node.func.id, node.lineno))
        if isinstance(node.func, ast.Attribute):
            self._walk(node.func.value)
            self._attribute(node.func, node)
        else:
            self._walk(node.func)

    def _attribute(self, node: ast.Attribute, call: ast.Call | None = None) -> None:
        """Note one `x.name`, read, written or called."""
        if call is None and not isinstance(node.value, ast.Name):
            self._walk(node.value)
        if _is_module(node.value):
            absent = node.attr not in self.bindings["names"]
            fault = f"the module has no {node.attr}" if absent else self._constructed(node.attr, call)
            self.uses.append(Use(owner="", name=node.attr, line=node.lineno, fault=fault))
            return
        owner = self._class_named(node.value) or self._type(node.value)
        if owner and node.attr in self.added.get(owner, set()):
            return
        if owner:
            fault = self._fault(owner, node, call)
            self.uses.append(Use(owner=owner, name=node.attr, line=node.lineno, fault=fault))
        elif not _self_attribute(node) and any(
            node.attr in members for members in self.bindings["classes"].values()
        ):
            self.untyped.append((node.attr, node.lineno))

    def _fault(self, owner: str, node: ast.Attribute, call: ast.Call | None) -> str:
        member = self._members(owner).get(node.attr)
        if member is None:
            return f"{owner} has no {node.attr}"
        if isinstance(node.ctx, ast.Store):
            return "" if member.get("settable") else f"{owner}.{node.attr} cannot be set"
        if call is None:
            return f"{owner}.{node.attr} is a method, and is not called" if member["kind"] == "method" else ""
        if member["kind"] != "method":
            return f"{owner}.{node.attr} is called, and is a {member['kind']}"
        arguments = (
            call.args[1:] if self._class_named(node.value) else call.args
        )  # `trt.ILogger.__init__(self)`
        return self._unfit(signatures(member["doc"], node.attr), arguments, call, f"{owner}.{node.attr}")

    def _constructed(self, name: str, call: ast.Call | None) -> str:
        if call is None or name not in self.bindings["classes"]:
            return ""
        doc = self._members(name)["__init__"].get("doc", "")
        return self._unfit(signatures(doc, "__init__"), call.args, call, name)

    def _unfit(self, overloads: list[Any], arguments: list[ast.expr], call: ast.Call, what: str) -> str:
        if not overloads:
            return f"{what} has no signature to hold the call against"
        if any(isinstance(one, ast.Starred) for one in arguments) or any(
            one.arg is None for one in call.keywords
        ):
            return f"{what} is called with arguments that cannot be counted"
        given = [self._type(one) or None for one in arguments]
        named = {one.arg: self._type(one.value) or None for one in call.keywords if one.arg}
        refusals = [overload.refusal(given, named) for overload in overloads]
        return "" if "" in refusals else f"{what} {refusals[0]}"

    def _type(self, node: ast.expr) -> str:
        """Return the class of TensorRT that an expression is of; empty where it is of none, or not known."""
        if isinstance(node, ast.Name):
            return self._types.get(node.id, "")
        if _self_attribute(node):
            return self._attributes.get(_self_attribute(node), "")
        if isinstance(node, ast.Attribute):
            holder = self._class_named(node.value)
            if holder:  # a member of an enumeration is of its class; `trt.ILogger.ERROR` of another one
                member = self._members(holder).get(node.attr, {})
                return str(member.get("type") or holder)
            member = self._members(self._type(node.value)).get(node.attr, {})
            return returned(member.get("doc", "")) if member.get("kind") == "property" else ""
        if isinstance(node, ast.Call):
            return self._call_type(node)
        return ""

    def _call_type(self, node: ast.Call) -> str:
        if isinstance(node.func, ast.Name):
            return self.ours.get(node.func.id, "")
        named = self._class_named(node.func)
        if named:
            return named
        if isinstance(node.func, ast.Attribute):
            member = self._members(self._type(node.func.value)).get(node.func.attr, {})
            kinds = {one.returns for one in signatures(member.get("doc", ""), node.func.attr)}
            return kinds.pop() if len(kinds) == 1 else ""
        return ""

    def _annotated(self, node: ast.expr) -> str:
        """Return the class that an annotation names, with or without `| None`."""
        if isinstance(node, ast.BinOp):
            return self._annotated(node.left) or self._annotated(node.right)
        if isinstance(node, ast.Name):
            return self.ours.get(node.id, "")
        return self._class_named(node)

    def _class_named(self, node: ast.expr) -> str:
        """Return `Builder` of `trt.Builder`, and `ILogger.Severity` of `trt.ILogger.Severity`."""
        if not isinstance(node, ast.Attribute):
            return ""
        inside = f"{self._class_named(node.value)}.{node.attr}"
        name = node.attr if _is_module(node.value) else inside
        return name if name in self.bindings["classes"] else ""

    def _members(self, owner: str) -> dict[str, Any]:
        found: dict[str, Any] = self.bindings["classes"].get(owner, {})
        return found


def subclasses(sources: list[str]) -> dict[str, str]:
    """Return our classes that derive from one of TensorRT's."""
    return {
        node.name: base.attr
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Attribute) and _is_module(base.value)
    }


def additions(sources: list[str]) -> dict[str, set[str]]:
    """Return what our classes define or set on themselves, by what they derive from."""
    found: dict[str, set[str]] = {}
    classes = [
        node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)
    ]
    for node in classes:
        base = subclasses(sources).get(node.name)
        for inner in ast.walk(node) if base else ():
            stored = isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store)
            name = (
                inner.name if isinstance(inner, ast.FunctionDef) else _self_attribute(inner) if stored else ""
            )
            if base and name and not name.startswith("__"):
                found.setdefault(base, set()).add(name)
    return found


def importers(folder: Path) -> Iterator[Path]:
    """Yield the files that import TensorRT."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.split(".")[0].startswith("tensorrt") for name in names):
                yield path
                break


def _is_module(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in {"trt", "tensorrt"}


def _self_attribute(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return ""
