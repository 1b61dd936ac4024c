"""Absolute limits that were measured on one machine, and hold for no other."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.values.conditions import Conditions
from edgekd.values.gate import Arm
from edgekd.values.latency import Protocol
from edgekd.values.model import Precision

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What `edgekd check CANDIDATE --baseline FILE` holds a candidate against."""

    schema_version: int
    runtime: str
    precision: Precision
    threads: int
    hardware: str  # fingerprints of the conditions and the protocol
    software: str
    protocol_fingerprint: str
    protocol: Protocol
    conditions: Conditions
    limits_ms: dict[str, float]  # by percentile
    measured: Arm
    reference_p50_ms: float  # of the reference model, taken in turns with it
    date: str  # UTC, ISO 8601
