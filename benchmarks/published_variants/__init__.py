"""Published variants of public kernels, rewritten from their facts, with the latencies that were measured on devices.

Each file holds one operator's family: kernels of our own in NKI 0.6 with the published loops, tiles, loads, instructions
and dtypes, and a `FAMILY` that lists them with latency, machine and source. The published kernels are in the older
language, whose compiler fills in what the source leaves open; what each port takes it to do is said at the port.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One published kernel: what was measured, and our kernel with its structure."""

    name: str
    published_ms: float
    kernel: Callable[..., Any]
    shapes: Sequence[tuple[tuple[int, ...], Any]]  # of the inputs: shape, dtype; as large as is run here
    repeats: float = (
        1.0  # the published problem is this many times the one that is run: it only repeats the same work
    )
    busy_ms: dict[str, float] | None = None  # published active time by engine
    hbm_bytes: float | None = None  # published bytes read and written

    def inputs(self) -> list[np.ndarray]:
        """Ones of the shapes that are run: time does not depend on values."""
        return [np.ones(shape, dtype) for shape, dtype in self.shapes]


@dataclass(frozen=True, kw_only=True)
class Family:
    """Variants of one operator on one machine at one problem size."""

    name: str
    target: str
    source: str
    variants: Sequence[Variant]
    same_problem: bool = True  # False: different operators, of which pairs say nothing


def families() -> list[Family]:
    """All families."""
    from published_variants import attention, conv1d, gemm, mamba, nkibench, sd_attention

    return [module.FAMILY for module in (gemm, attention, sd_attention, mamba, conv1d, nkibench)]
