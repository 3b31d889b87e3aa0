"""`nki.isa`: the instructions under AWS's names. Their meaning is in `simulator/instructions`."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from neuron_port.simulator.context import current_run
from neuron_port.simulator.errors import ConstraintError as NkiValidationError
from neuron_port.simulator.instructions.accumulators import reduce_cmd
from neuron_port.simulator.instructions.activate2 import activate2
from neuron_port.simulator.instructions.dma import dge_mode, dma_copy, dma_transpose, oob_mode
from neuron_port.simulator.instructions.dma_compute import dma_compute
from neuron_port.simulator.instructions.exponential import exponential, rand2
from neuron_port.simulator.instructions.gather import local_gather
from neuron_port.simulator.instructions.gpsimd_engine import (
    affine_select,
    iota,
    nc_n_gather,
    tensor_partition_reduce,
)
from neuron_port.simulator.instructions.microscaling import nc_matmul_mx, quantize_mx
from neuron_port.simulator.instructions.multicore import core_barrier, dma_engine, sendrecv
from neuron_port.simulator.instructions.random_numbers import (
    dropout,
    rand_get_state,
    rand_set_state,
    rng,
    set_rng_seed,
)
from neuron_port.simulator.instructions.scalar_engine import activation, activation_reduce
from neuron_port.simulator.instructions.sequence import nonzero_with_count, sequence_bounds
from neuron_port.simulator.instructions.sequencer import (
    register_alloc,
    register_load,
    register_move,
    register_store,
)
from neuron_port.simulator.instructions.tensor_engine import matmul_perf_mode, nc_matmul, nc_transpose
from neuron_port.simulator.instructions.topk import topk
from neuron_port.simulator.instructions.vector_engine import (
    memset,
    reciprocal,
    scalar_tensor_tensor,
    tensor_copy,
    tensor_reduce,
    tensor_scalar,
    tensor_tensor,
)
from neuron_port.simulator.instructions.vector_search import max8, nc_find_index8, nc_match_replace8
from neuron_port.simulator.instructions.vector_select import (
    range_select,
    select_reduce,
    tensor_copy_predicated,
    tensor_scalar_cumulative,
    tensor_scalar_reduce,
)
from neuron_port.simulator.instructions.vector_statistics import (
    bn_aggr,
    bn_stats,
    nc_stream_shuffle,
    tensor_tensor_scan,
)
from neuron_port.simulator.registers import VirtualRegister
from neuron_port.simulator.trace import NkiInstruction, engine

__all__ = [
    "NkiInstruction", "NkiValidationError", "VirtualRegister", "activate2", "activation",
    "activation_reduce", "affine_select", "bn_aggr", "bn_stats", "core_barrier", "dge_mode", "dma_compute",
    "dma_copy", "dma_engine", "dma_transpose", "dropout", "engine", "exponential", "get_nc_sub_version",
    "get_nc_version", "iota", "local_gather", "matmul_perf_mode", "max8", "memset", "nc_find_index8",
    "nc_match_replace8", "nc_matmul", "nc_matmul_mx", "nc_n_gather", "nc_stream_shuffle", "nc_transpose",
    "nc_version", "nonzero_with_count", "oob_mode", "quantize_mx", "rand2", "rand_get_state",
    "rand_set_state", "range_select", "reciprocal", "reduce_cmd", "register_alloc", "register_load",
    "register_move", "register_store", "rng", "scalar_tensor_tensor", "select_reduce", "sendrecv",
    "sequence_bounds", "set_rng_seed", "tensor_copy", "tensor_copy_predicated", "tensor_partition_reduce",
    "tensor_reduce", "tensor_scalar", "tensor_scalar_cumulative", "tensor_scalar_reduce", "tensor_tensor",
    "tensor_tensor_scan", "topk",
]  # fmt: skip

tensor_engine, vector_engine, scalar_engine = engine.tensor, engine.vector, engine.scalar
gpsimd_engine, unknown_engine = engine.gpsimd, engine.unknown


class nc_version(IntEnum):  # noqa: N801 - AWS's name; kernels compare versions
    """NeuronCore generations."""

    gen2 = 2
    gen3 = 3
    gen4 = 4


def get_nc_version() -> nc_version:
    """The generation of the target that the kernel runs on."""
    return nc_version(current_run().target.generation)


def get_nc_sub_version() -> int:
    """The revision within the generation: 0."""
    return 0


def __getattr__(name: str) -> Any:
    raise AttributeError(f"nki.isa has no `{name}`")
