"""`nki.isa.constants`: the enums of `nki.isa` under the module name that kernel libraries import."""

from __future__ import annotations

from neuron_port.simulator.nki.isa import (
    dge_mode,
    dma_engine,
    engine,
    matmul_perf_mode,
    nc_version,
    oob_mode,
    reduce_cmd,
)

__all__ = ["dge_mode", "dma_engine", "engine", "matmul_perf_mode", "nc_version", "oob_mode", "reduce_cmd"]
