"""The build that ships, where a build is a random draw: several are timed against each other, and the fastest wins."""

from __future__ import annotations

import logging
from dataclasses import replace

from edgekd.backends import TYPED
from edgekd.errors import BuildError
from edgekd.pipeline.measuring import FULL, Judged, judge
from edgekd.pipeline.workbench import Workbench
from edgekd.stages.lottery import Lottery, lottery
from edgekd.values.bundle import Builds
from edgekd.values.latency import Protocol

log = logging.getLogger(__name__)

BUILDS = 5
_TURNS = Protocol(launches=3, blocks=2, samples=100)  # of each build


def fastest_build(bench: Workbench, judged: Judged) -> tuple[Judged, Builds | None]:
    """Draw several builds of an accepted file and judge the fastest beside the one that was accepted.

    The one that was accepted stays, as it measured beside the other, where that one breaks a limit; and as it was,
    where fewer than two of the builds came to anything. Other runtimes give the same file each time: nothing is built or measured for them.
    """
    engine = judged.engine
    if engine.runtime not in TYPED - {"trtexec"}:  # which builds anew for each measurement
        return judged, None
    folder = bench.store.root / "draws" / engine.model.file.sha256[:16]
    try:
        found = lottery(folder, bench.device, engine, replace(_TURNS, seed=bench.seed), builds=BUILDS)
        first, drawn = judge(bench, [engine, found.engine], FULL)
    except BuildError as error:
        log.warning("several builds cannot be compared: %s", error)
        return judged, None
    log.info("  %d builds differ by %.1f %%", len(found.draws), 100 * found.range)
    return (first, None) if drawn.breaches else (drawn, _builds(found))


def _builds(found: Lottery) -> Builds:
    return Builds(
        p50_ms=tuple(draw.latency.percentile(50.0) for draw in found.draws),
        picked=found.picked,
        build_spread=found.build_spread,
        launch_spread=found.launch_spread,
        failed=found.failed,
    )
