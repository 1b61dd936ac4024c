"""What a worker answered in its turns, put together to one measurement."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from edgekd.timing import trust
from edgekd.timing.conditions import over_blocks
from edgekd.values.latency import Latency, Launch, Protocol
from edgekd.values.model import Engine
from edgekd.values.order import SampleReply


@dataclass(kw_only=True)
class Run:
    """The blocks of one engine, in run order over all launches."""

    blocks: list[SampleReply] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)

    def latency(self, engine: Engine, protocol: Protocol) -> Latency:
        wall_ms = tuple(ns / 1e6 for block in self.blocks for ns in block.wall_ns)
        cpu_ms = tuple(ns / 1e6 for block in self.blocks for ns in block.cpu_ns)
        preempted = tuple(one for block in self.blocks for one in block.preempted)
        sizes = tuple(len(block.wall_ns) for block in self.blocks)
        loads = [block.conditions.load for block in self.blocks]
        load = over_blocks(loads, [sum(block.wall_ns) for block in self.blocks])
        conditions = replace(self.blocks[-1].conditions, load=load)
        verdict = trust.judge(
            wall_ms,
            cpu_ms,
            preempted,
            block_sizes=sizes,
            launches=len(self.launches),
            load=load,
            cores=conditions.hardware.cores,
            threads=engine.threads,
            steady=all(block.steady for block in self.blocks),
        )
        return Latency(
            samples_ms=wall_ms,
            cpu_ms=cpu_ms,
            preempted=preempted,
            block_sizes=sizes,
            launches=tuple(self.launches),
            protocol=protocol,
            conditions=conditions,
            trust=verdict,
        )
