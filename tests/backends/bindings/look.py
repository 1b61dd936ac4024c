"""A program: import TensorRT's real bindings and print, as JSON, every class, member and signature they have."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from typing import Any


def classes(owner: Any, prefix: str = "") -> dict[str, Any]:
    """Describe the classes of a module, and those within them."""
    found: dict[str, Any] = {}
    for name, value in vars(owner).items():
        if inspect.isclass(value) and not name.startswith("_") and name != prefix:
            full = f"{prefix}.{name}" if prefix else name
            found[full] = {member: describe(value, member) for member in dir(value)}
            if not prefix:
                found |= classes(value, full)
    return found


def describe(owner: Any, name: str) -> dict[str, Any]:
    """Describe one member: what it is, what its docstring says it takes, and of what type it is."""
    try:
        member = inspect.getattr_static(owner, name)
    except AttributeError:
        return {"kind": "absent"}
    if isinstance(member, property):
        return {
            "kind": "property",
            "doc": getattr(member.fget, "__doc__", "") or "",
            "settable": member.fset is not None,
        }
    if name in getattr(owner, "__members__", {}):
        return {"kind": "member"}
    if inspect.isclass(member):
        return {"kind": "class"}
    if callable(getattr(owner, name, None)):
        return {"kind": "method", "doc": getattr(getattr(owner, name), "__doc__", "") or ""}
    return {"kind": "value", "type": type(getattr(owner, name, None)).__qualname__}


def main() -> None:
    """Print what the bindings beside this program's first argument have."""
    sys.path.insert(0, sys.argv[1])
    bindings = importlib.import_module("tensorrt_bindings")
    found = {"version": bindings.__version__, "names": sorted(vars(bindings)), "classes": classes(bindings)}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
