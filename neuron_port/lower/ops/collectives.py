"""What tensor-parallel ranks exchange, as XLA's collectives over all replicas 0 .. ranks - 1.

Replicas, not partitions: one program that every rank runs by itself, with groups of replica ids and no channel id. That
is the form which nkipy hands to neuronx-cc (nkipy/core/backend/hlo.py) and which XLA-CPU runs on several devices.
"""

from __future__ import annotations

from neuron_port.lower.builder import Builder, Value
from neuron_port.lower.module import Shape


def all_reduce(b: Builder, out: Shape, x: Value, ranks: int, layer: str) -> Value:
    """The sum of every rank's `x`, in its own dtype: a rank's part is rounded already, and the wire carries half."""
    return b.op(
        "all-reduce",
        x.dtype,
        x.shape,
        x,
        replica_groups=[{"replica_ids": list(range(ranks))}],
        called_computation_ids=[b.scalar_function("add", x.dtype)],
    )


def all_gather(b: Builder, out: Shape, x: Value, axis: int, ranks: int, layer: str) -> Value:
    """Every rank's `x` side by side along `axis`."""
    return b.op(
        "all-gather",
        x.dtype,
        out.dimensions,
        x,
        dimensions=[axis],
        replica_groups=[{"replica_ids": list(range(ranks))}],
    )
