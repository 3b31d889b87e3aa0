"""`nki.isa`: the instructions under AWS's names. Their meaning is in `simulator/instructions`."""

from __future__ import annotations

from enum import Enum
from typing import Any

from neuron_port.simulator.context import current_run
from neuron_port.simulator.errors import ConstraintError as NkiValidationError
from neuron_port.simulator.errors import UnsupportedError
from neuron_port.simulator.instructions.dma import dge_mode, dma_copy, dma_transpose, oob_mode
from neuron_port.simulator.instructions.gpsimd_engine import (
    affine_select,
    iota,
    nc_n_gather,
    tensor_partition_reduce,
)
from neuron_port.simulator.instructions.scalar_engine import activation, activation_reduce, reduce_cmd
from neuron_port.simulator.instructions.sequencer import (
    register_alloc,
    register_load,
    register_move,
    register_store,
)
from neuron_port.simulator.instructions.tensor_engine import matmul_perf_mode, nc_matmul, nc_transpose
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
    "NkiInstruction", "NkiValidationError", "VirtualRegister", "activation", "activation_reduce",
    "affine_select", "bn_aggr", "bn_stats", "dge_mode", "dma_copy", "dma_engine", "dma_transpose", "engine",
    "get_nc_sub_version", "get_nc_version", "iota", "matmul_perf_mode", "max8", "memset", "nc_find_index8",
    "nc_match_replace8", "nc_matmul", "nc_n_gather", "nc_stream_shuffle", "nc_transpose", "nc_version",
    "oob_mode", "range_select", "reciprocal", "reduce_cmd", "register_alloc", "register_load",
    "register_move", "register_store", "scalar_tensor_tensor", "select_reduce", "tensor_copy",
    "tensor_copy_predicated", "tensor_partition_reduce", "tensor_reduce", "tensor_scalar",
    "tensor_scalar_cumulative", "tensor_scalar_reduce", "tensor_tensor", "tensor_tensor_scan",
]  # fmt: skip

tensor_engine, vector_engine, scalar_engine = engine.tensor, engine.vector, engine.scalar
gpsimd_engine, unknown_engine = engine.gpsimd, engine.unknown


class nc_version(Enum):  # noqa: N801 - AWS's name
    """NeuronCore generations."""

    gen2 = 2
    gen3 = 3
    gen4 = 4


class dma_engine(Enum):  # noqa: N801 - AWS's name
    """Who moves data in sendrecv."""

    dma = 1
    gpsimd_dma = 2


def get_nc_version() -> nc_version:
    """The generation of the target that the kernel runs on."""
    return nc_version(current_run().target.generation)


def get_nc_sub_version() -> int:
    """The revision within the generation: 0."""
    return 0


NOT_SIMULATED = frozenset(
    {
        "nc_matmul_mx",
        "activate2",
        "local_gather",
        "rng",
        "dropout",
        "set_rng_seed",
        "rand_set_state",
        "rand_get_state",
        "rand2",
        "exponential",
        "sequence_bounds",
        "core_barrier",
        "dma_compute",
        "quantize_mx",
        "sendrecv",
        "nonzero_with_count",
        "topk",
    }
)


def __getattr__(name: str) -> Any:
    if name in NOT_SIMULATED:
        raise UnsupportedError(f"nki.isa.{name} is not simulated", hint="docs/simulator.md lists what is")
    raise AttributeError(f"nki.isa has no `{name}`")
