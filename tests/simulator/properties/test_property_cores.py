"""Properties of the instructions by which the two cores of a logical core work together."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from property_reference import NUMPY
from property_tiles import covers, few_properties, make_values, partition_counts, seeds, value_names

from neuron_port.simulator import run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl


@covers("sendrecv", "core_barrier")
@given(partition_counts, st.integers(1, 12), value_names, seeds, st.sampled_from(["dma", "gpsimd_dma"]))
@few_properties
def test_sendrecv_exchanges_the_tiles_of_both_cores(
    partitions: int, free: int, dtype: str, seed: int, engine: str
) -> None:
    """Each core receives the other's tile, bit for bit; after the barrier both see what both have written."""
    values = make_values((2, partitions, free), dtype, seed)

    def kernel(data: Any) -> Any:
        mine = nl.program_id(0)
        other = 1 - mine
        sent = nl.ndarray((partitions, free), getattr(nl, dtype), nl.sbuf)
        received = nl.ndarray((partitions, free), getattr(nl, dtype), nl.sbuf)
        nisa.dma_copy(sent, data[mine])
        nisa.sendrecv(
            src=sent,
            dst=received,
            send_to_rank=other,
            recv_from_rank=other,
            pipe_id=0,
            dma_engine=nisa.dma_engine[engine],
        )
        shared = nl.ndarray((2, partitions, free), getattr(nl, dtype), nl.shared_hbm)
        nisa.dma_copy(shared[mine], received)
        nisa.core_barrier(shared, (0, 1))
        out = nl.ndarray((2, partitions, free), getattr(nl, dtype), nl.shared_hbm)
        back = nl.ndarray((partitions, free), getattr(nl, dtype), nl.sbuf)
        nisa.dma_copy(back, shared[other])
        nisa.dma_copy(out[mine], back)
        return out

    got = run_kernel(kernel, values.astype(NUMPY[dtype]), lnc=2).outputs[0]
    np.testing.assert_array_equal(got.astype(np.float64), values)
