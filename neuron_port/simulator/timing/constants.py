"""What instructions and transfers cost beyond the machine's widths and clocks: one frozen record per generation.

Every number carries its source, and no number comes from the latency of a whole kernel, with one exception that is
marked: TensorE's effective clock on NeuronCore-v2. What no document states is marked as an assumption.

Sources: `perf` is nki_perf_guide.rst, `arch2` and `arch3` are trainium_inferentia2_arch.rst and trainium2_arch.rst,
`dma` is nki-dma-overview.rst, `bandwidth` is nki-dma-bandwidth-guide.rst, `dge` is nki-dge.rst, `opt` is the profile of
single instructions in kernel-optimization.rst, `isa26` are the instruction pages of Neuron 2.26.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Fixed costs of one generation. Cycles are of the engine that the name begins with."""

    # ---- VectorE and ScalarE: occupied for work + fixed, visible after work + latency -----------------------
    minimum_cycles: int = 64  # shortest initiation interval, all engines (isa26: MIN_II)
    # Starting to access SBUF or PSUM takes ~60 cycles (arch2, tensor access overhead). Where an instruction needs
    # the previous one's result, it waits for the latency below instead: ~100 cycles on VectorE (arch2; perf opt. 5a).
    vector_fixed_cycles: int = 60
    vector_latency_cycles: int
    scalar_fixed_cycles: int = 60  # the notes on VectorE apply to ScalarE too (arch2)
    scalar_latency_cycles: int
    # VectorE cycles per element of reciprocal. Documented as 8 (isa26), but VectorE's activity in NKIBench's silu and
    # adamw leaves 1331 cycles for 512 elements, once two-input instructions take the 2N + 108 that its rope shows.
    reciprocal_cycles: float = 2.4
    read_accumulator_cycles: int = 64  # ActReadAccumulator, and the like on VectorE (arch2; isa26)
    table_load_ns: float = 1290.0  # ACT_TABLE_LOAD (profile in dma)
    wide_stride_bytes: int = 16  # larger innermost strides halve SBUF and PSUM bandwidth (arch2)
    dynamic_address_cycles: int = 600  # least cost of an instruction with a run-time address (isa26)

    # ---- GpSimdE --------------------------------------------------------------------------------------------
    gpsimd_start_cycles: int = 150  # isa26: GPSIMD_START

    # ---- TensorE --------------------------------------------------------------------------------------------
    # A 512-column float32 pass takes 600 ns at a spacing of 429.6 ns (opt): the array's depth.
    tensor_fill_ns: float = 170.0
    stationary_speedup: int = 4  # LoadStationary is up to 4x faster than a matmul of its size (arch2)
    passes_float32: int = 4  # arch2; two instructions of 1024 cycles in opt
    passes_float32_onezero: int = 2  # isa26: up to 2x for float32 with is_*_onezero
    passes_float32_transpose: int  # arch3: transpose mode is 2x faster in float32
    cold_rate: float = 0.5  # of the clock; neuron-explorer overview-summary-page.rst and troubleshooting.rst
    cold_window_ns: float = 3000.0  # busy time to warm up, and window of the 50 % rule (same pages)
    warm_utilisation: float = 0.5

    # ---- DMA ------------------------------------------------------------------------------------------------
    # Trigger to first byte: 740 to 1007 ns (load), 900 ns (store) in the profiles of dma.
    dma_start_ns: float = 900.0
    dma_finish_ns: float = 300.0  # completion to the start of the consumer (profiles of dma)
    # Overhead of one descriptor. NeuronCore-v3: a piece of 2 KiB takes 97 ns (profile of a [128, 128] load in dma), of
    # which 2048 / 27.2 move bytes. v2 has v3's theoretical rate and is given v3's overhead; its lower sustained rate
    # is a cap. With it pieces of 4 KiB reach the documented sustained rate, as they should (bandwidth).
    descriptor_ns: float
    transpose_efficiency_hbm: float = 0.9  # arch3
    transpose_efficiency_sbuf: float = 0.5  # arch3
    reduce_efficiency: float = 0.5  # dma_compute (trainium3_arch.rst)
    hwdge_issue_ns: float = 600.0  # per instruction on the sequencer that triggers it (arch3; dge)
    trigger_ns: float = 50.0  # any other trigger: the 60-cycle access overhead of arch2, rounded
    swdge_cycles_per_descriptor: int = 1  # assumption: no document says what GpSimdE needs for one

    # ---- calls and cores ------------------------------------------------------------------------------------
    # Published profiles show the first compute 13 to 17 us after the start, of which ~3 us are its load, and ~5 us after
    # the last store (dma; fused_mamba.rst). What a call on two cores costs beyond that is not published.
    launch_ns: float = 12_000.0
    teardown_ns: float = 5_000.0
    barrier_ns: float = 1300.0  # a semaphore across engines (bandwidth); assumed the same across cores
    hop_ns: float = 1500.0  # of a ring of ranks: 1 to 2 us (intranode-collective-comm.rst)

    @property
    def overhead_ns(self) -> float:
        """What a call adds to the device's own time."""
        return self.launch_ns + self.teardown_ns


GEN2_COSTS = Costs(
    vector_latency_cycles=100,  # arch2: 100 cycles where each instruction needs the previous one's output
    scalar_latency_cycles=263,  # a chain of 1-element activations runs at 264 cycles each (perf opt. 5a)
    passes_float32_transpose=4,
    descriptor_ns=97 - 2048 / 27.2,
)
GEN3_COSTS = Costs(
    vector_latency_cycles=155,  # opt: 428 ns for 256 cycles of copy, 695 ns for 512 cycles of tensor_tensor
    scalar_latency_cycles=354,  # dma: exp takes 402 ns for 128 and 3716 ns for 4096 elements
    passes_float32_transpose=2,
    descriptor_ns=97 - 2048 / 27.2,
)
GEN4_COSTS = Costs(  # no measurement is published: as NeuronCore-v3, with its own DMA rates
    vector_latency_cycles=155,
    scalar_latency_cycles=354,
    passes_float32_transpose=2,
    descriptor_ns=4096 / 33 - 4096 / 38.4,
)
COSTS = {2: GEN2_COSTS, 3: GEN3_COSTS, 4: GEN4_COSTS}

# Functions by the table that holds them. Documents name four sets (work-with-neff-files.rst) but not their members;
# those of "small" are taken to be in every set, and the rest is grouped by name: an assumption.
IN_EVERY_TABLE = frozenset({"copy", "identity", "square", "relu", "prelu", "abs", "sign", "memset"})
TABLE_OF = {
    "exp": "natural_log_exp_and_others",
    "log": "natural_log_exp_and_others",
    "rsqrt": "reciprocal_sqrt_and_small",
    "sqrt": "reciprocal_sqrt_and_small",
    "reciprocal": "reciprocal_and_small",
    "sin": "trigonometric",
    "arctan": "trigonometric",
}
OTHER_TABLE = "gelu_and_others"


def table_of(function: str) -> str | None:
    """The table set that ScalarE needs for `function`; None when every set has it."""
    if function in IN_EVERY_TABLE:
        return None
    return TABLE_OF.get(function, OTHER_TABLE)
