"""What is asked of a sandbox, and what comes out of it: arrays and facts, never a verdict.

A job is plain data, so that it can run in a process of its own here, or on another machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

GIB = 1024**3
FailureKind = Literal["refused", "simulator", "python", "time", "memory", "crash", "protocol"]


@dataclass(frozen=True, kw_only=True)
class SandboxLimits:
    """For one process: it ends when it exceeds one of them."""

    cpu_seconds: float = 60.0  # of all its calls together
    wall_seconds: float = 120.0
    memory_bytes: int = 4 * GIB  # besides what Python and NumPy take; inputs included
    instructions: int = 2_000_000  # simulated, per call
    output_bytes: int = GIB  # of all arrays that it returns


@dataclass(frozen=True, kw_only=True)
class KernelCall:
    """One call: the kernel's tensor arguments in order (float32, ml_dtypes.bfloat16, int32 ...) and its attributes.

    An optional tensor that is not there is None.
    """

    arrays: tuple[np.ndarray | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    predict: bool = False  # also predict the latency (and, with `advise`, say what to change)
    advise: bool = False


@dataclass(frozen=True, kw_only=True)
class SandboxJob:
    """Run `entry_point` of `source` on every call, in order, in one fresh process."""

    source: str
    entry_point: str
    calls: tuple[KernelCall, ...]
    target: str = "trn2"
    limits: SandboxLimits = SandboxLimits()


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a call gave nothing. `error_class` is the simulator's or Python's class name, or the limit's."""

    kind: FailureKind
    error_class: str  # "ConstraintError", "TypeError", "cpu time", "forbidden attribute" ...
    message: str
    hint: str | None = None
    line: int | None = None  # of the kernel's source


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What one call did, as the sandbox counted it."""

    instructions: int
    by_opcode: Mapping[str, int]
    by_engine: Mapping[str, int]
    matmul_macs: int
    hbm_read_bytes: int
    hbm_write_bytes: int
    computed_elements: int | None = None  # written by instructions that compute: no DMA, memset or iota
    matmul_dtypes: tuple[str, ...] = ()  # dtypes of nc_matmul's operands: shows a silent loss of precision
    warnings: tuple[str, ...] = ()
    latency_ns: float | None = None  # predicted, when asked for
    profile: Mapping[str, Any] | None = None  # busy time by engine, bound, lines, advice; when asked for


@dataclass(frozen=True, kw_only=True)
class CallOutcome:
    """Of one call: outputs and facts, or the failure."""

    outputs: tuple[np.ndarray, ...] = ()
    facts: RunFacts | None = None
    failure: Failure | None = None


@dataclass(frozen=True, kw_only=True)
class SandboxOutcome:
    """Of one job: one entry for each call that was reached; a process that died leaves the rest out."""

    calls: tuple[CallOutcome, ...]
    failure: Failure | None = None  # of the whole process: refused source, limit, crash
    cpu_seconds: float = 0.0
    isolation: tuple[str, ...] = ()  # "rlimits", "seccomp", "network namespace": what was in force
