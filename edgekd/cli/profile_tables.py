"""How the profile of a model reads on a terminal: latency, energy, the parts of a request, and layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from edgekd.cli import layout
from edgekd.cli.tables import compiled_name, trust
from edgekd.devices.hostkeys import printable
from edgekd.values.bundle import summarise
from edgekd.values.codec import plain
from edgekd.values.layer import LayerTable
from edgekd.values.ledger import Ledger
from edgekd.values.outcome import Profile

_MOST_LAYERS, _LONGEST_NAME = 15, 60
_CONFIDENCE = 0.95


def profiled(found: Profile) -> RenderableType:
    """Lay out the latency of a model on each runtime."""
    table = layout.table(
        "latency in ms, one inference",
        "compiled",
        "p50",
        "p90",
        "p99",
        "p99 at most",
        "mean",
        "trust",
        "open",
        "memory",
    )
    for one in found.results:
        if one.latency_ms is None:
            continue
        ms = one.latency_ms
        table.add_row(
            compiled_name(one),
            *(f"{value:.3f}" for value in (ms.p50, ms.p90, ms.p99)),
            _bound(ms.p99_upper),
            f"{ms.mean:.3f}",
            ms.trust.verdict.value,
            f"{one.open_ms:.0f} ms" if one.open_ms is not None else "",
            f"{one.memory_mib:.0f} MiB" if one.memory_mib is not None else "",
        )
    measured = [(compiled_name(one), one.latency_ms) for one in found.results if one.latency_ms is not None]
    problems = [
        Text(f"  {compiled_name(one)} was not measured: {one.problem[:400]}", style="red")
        for one in found.results
        if one.problem
    ]
    energies = [
        Text(f"  energy, {compiled_name(one)}: {one.energy.words}")
        for one in found.results
        if one.energy is not None
    ]
    ledgers = [_ledger(one.ledger) for one in found.results if one.ledger is not None]
    return Group(table, *problems, *trust(measured), *energies, *ledgers, *map(layer_table, found.layers))


def profiled_json(found: Profile) -> dict[str, Any]:
    """Give the fastest result's fields beside the list of all."""
    data: dict[str, Any] = plain(found)
    data["layers"] = [_layers_json(one) for one in found.layers]
    measured = [one for one in data["results"] if one["latency_ms"] is not None]
    first = min(measured, key=lambda one: float(one["latency_ms"]["p50"]), default=data["results"][0])
    summary = first["latency_ms"] or {}
    raised = {key: summary.get(key) for key in ("samples", "protocol", "trust", "conditions")}
    return {**first, **raised, **data}


def layer_table(found: LayerTable) -> RenderableType:
    """Lay out the layers that take most, beside what the whole file takes."""
    name = f"{found.runtime}/{found.precision.value}"
    timed = [one for one in zip(found.layers, found.shares) if one[1] is not None]
    shown = sorted(timed, key=lambda one: -(one[1] or 0.0))[:_MOST_LAYERS] or [
        *zip(found.layers, found.shares)
    ]
    shown = shown[:_MOST_LAYERS]
    count = f"{len(shown)} of {len(found.layers)} layers" if len(shown) < len(found.layers) else "all layers"
    table = layout.table(f"{name}, {count}, the longest first", "layer", "kind", "computes", "share", "ms")
    for layer, share in shown:
        table.add_row(
            Text(printable(layer.name, _LONGEST_NAME)),
            Text(printable(layer.kind, _LONGEST_NAME)),
            Text(printable(layer.output, _LONGEST_NAME)),
            "" if share is None else f"{share:.1%}",
            "" if layer.time_ms is None else f"{layer.time_ms:.4f}",
        )
    whole = f"  the whole file takes p50 {found.latency.percentile(50):.3f} ms, p99 {found.latency.percentile(99):.3f} ms"
    doubt = f"  the layers' times add up to {found.sum_of_layers_ms:.3f} ms, which is no latency: each was timed alone"
    return Group(Text(), table, Text(whole), Text(f"{doubt}, {found.passes} times", style="dim"))


def _layers_json(found: LayerTable) -> dict[str, Any]:
    """Give a layer table with a summary in place of its samples."""
    data: dict[str, Any] = plain(replace(found, layers=()))
    data["latency_ms"] = plain(summarise(found.latency, _CONFIDENCE))
    del data["latency"]
    layers = [{**plain(layer), "share": share} for layer, share in zip(found.layers, found.shares)]
    return {**data, "sum_of_layers_ms": found.sum_of_layers_ms, "layers": layers}


def _ledger(found: Ledger) -> RenderableType:
    """Lay out where the time of a request goes."""
    table = layout.table("a request in ms, from an image to its label", *found.parts_ms, "timed as one")
    table.add_row(*(f"{ms:.4f}" for ms in (*found.parts_ms.values(), found.whole_ms)))
    text = f"  beside the model a request takes {found.beside_ms:.4f} ms; medians of {found.samples}"
    return Group(Text(), table, Text(text, style="dim"))


def _bound(bound_ms: float | None) -> str:
    return "unbounded" if bound_ms is None else f"{bound_ms:.3f}"
