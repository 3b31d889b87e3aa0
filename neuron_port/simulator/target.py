"""The machines: one frozen record per NeuronCore generation, each number with its source.

Only what a NeuronCore has and how wide it is. What an instruction costs beyond that (fixed latencies, efficiency of
small transfers) belongs to the latency model.

Sources are pages of the Neuron documentation (2.32): `..._arch.rst` are the architecture guides of NKI, `dma` is
nki-dma-overview.rst, `bandwidth` is nki-dma-bandwidth-guide.rst, `chip` are the pages of the chips.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from neuron_port.simulator.errors import UnsupportedError

KIB = 1024


@dataclass(frozen=True, kw_only=True)
class Target:
    """What there is to know of one NeuronCore. Bandwidths are in bytes per nanosecond, which is GB/s."""

    name: str
    generation: int
    sbuf_bytes_per_partition: int
    sbuf_usable_bytes_per_partition: int
    partitions: int = 128  # all generations (trainium_inferentia2_arch.rst)
    psum_banks: int = 8  # 16 KiB per partition in 8 banks (trainium_inferentia2_arch.rst)
    psum_bank_bytes: int = 2 * KIB  # 512 float32 values

    # ---- TensorE ------------------------------------------------------------------------------------------
    stationary_free_max: int = 128
    moving_free_max: int  # columns of a matmul into float32
    moving_free_max_bf16: int  # into bfloat16: 0 where TensorE cannot write it
    tensor_clock_ghz: float  # as documented
    # What published matmul latencies fit on every generation: Trn1's best tutorial matmul takes as long as 2.4 GHz
    # predict, not the documented 2.8 (matmul tutorial, kernel-optimization.rst).
    tensor_effective_clock_ghz: float = 2.4
    tensor_rows_per_cycle_8bit: int  # contraction rows in units of the array's 128: 2 is double_row
    tensor_rows_per_cycle_mx: int  # the same for MXFP8 and MXFP4; 0 where there is none
    tensor_clock_gates: bool  # starts at half the clock and ramps up over ~3 us (neuron-explorer overview)
    background_transpose: bool  # a transpose runs beside a matmul (trainium3_arch.rst)
    bf16_accumulation: bool  # TensorE adds to bfloat16 in PSUM (trainium3_arch.rst)
    accumulates_on_any_writer: (
        bool  # a matmul may add to what a memset or copy wrote (nc_matmul documentation)
    )

    # ---- other engines: GHz, and elements that one partition takes per cycle -------------------------------
    vector_clock_ghz: float
    scalar_clock_ghz: float
    gpsimd_clock_ghz: float
    vector_elements_per_cycle_16bit: int  # at best: all operands 16-bit (gen4: or 8-bit), in SBUF, contiguous
    vector_elements_per_cycle: int
    scalar_elements_per_cycle_16bit: int  # tensor_copy and tensor_scalar only
    scalar_elements_per_cycle: int = 1  # trainium_inferentia2_arch.rst, trainium3_arch.rst
    gpsimd_elements_per_cycle: int = 1
    vector_excludes_gpsimd_in_sbuf: bool  # the two never access SBUF at the same time
    vector_excludes_scalar_in_psum: bool  # the two never access PSUM at the same time

    # ---- DMA and HBM --------------------------------------------------------------------------------------
    dma_engines: int = 16  # of one core (trainium2_arch.rst; 32 for 2 cores, 128 for 8)
    dma_queues_per_engine: int = 16  # dma
    dma_engine_theoretical_bytes_per_ns: float  # dma
    dma_engine_bytes_per_ns: float  # sustained peak (bandwidth)
    has_hwdge: bool  # descriptors made by hardware
    hwdge_blocks: int  # of one core
    dma_priorities: int  # classes of service; 0 where DMA has none
    hbm_bytes_per_ns_per_core: float  # the core's fair share of its chip's HBM
    hbm_bytes_per_ns_per_core_pair: float  # of the two cores that make one logical core (LNC2)
    cores_per_chip: int
    hbm_bytes_per_chip: int
    logical_core_sizes: tuple[int, ...]  # how many cores may be launched as one

    @property
    def dma_bytes_per_ns(self) -> float:
        """What all DMA engines of one core sustain together."""
        return self.dma_engines * self.dma_engine_bytes_per_ns

    def moving_free_max_into(self, *, bfloat16: bool) -> int:
        """Columns that one matmul may have, by the dtype of its destination."""
        return self.moving_free_max_bf16 if bfloat16 else self.moving_free_max

    def facts(self) -> dict[str, object]:
        """Every field by name, for reports."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


GEN2 = Target(
    name="gen2",
    generation=2,
    sbuf_bytes_per_partition=192 * KIB,  # 24 MiB over 128 partitions (trainium_inferentia2_arch.rst)
    # 16 KiB are reserved (SBUF allocation text of the Neuron 2.26 documentation).
    sbuf_usable_bytes_per_partition=(192 - 16) * KIB,
    moving_free_max=512,  # nc_matmul documentation, NeuronCore-v2 and v3: one PSUM bank
    moving_free_max_bf16=0,
    tensor_clock_ghz=2.8,  # trainium_inferentia2_arch.rst
    tensor_rows_per_cycle_8bit=1,
    tensor_rows_per_cycle_mx=0,
    tensor_clock_gates=False,
    background_transpose=False,
    bf16_accumulation=False,
    accumulates_on_any_writer=False,
    vector_clock_ghz=1.12,  # trainium_inferentia2_arch.rst, as the next two
    scalar_clock_ghz=1.4,
    gpsimd_clock_ghz=1.4,
    vector_elements_per_cycle_16bit=1,  # 128 elements for 128 lanes (trainium_inferentia2_arch.rst)
    vector_elements_per_cycle=1,
    scalar_elements_per_cycle_16bit=1,
    vector_excludes_gpsimd_in_sbuf=True,  # trainium_inferentia2_arch.rst, as the next
    vector_excludes_scalar_in_psum=True,
    dma_engine_theoretical_bytes_per_ns=27.2,
    dma_engine_bytes_per_ns=17.0,
    has_hwdge=False,  # trainium2_arch.rst introduces it
    hwdge_blocks=0,
    dma_priorities=0,
    hbm_bytes_per_ns_per_core=410.0,  # 820 GB/s for 2 cores (trainium_inferentia2_arch.rst)
    hbm_bytes_per_ns_per_core_pair=820.0,
    cores_per_chip=2,  # chip
    hbm_bytes_per_chip=32 * KIB**3,  # trainium_inferentia2_arch.rst
    logical_core_sizes=(1,),
)
GEN3 = Target(
    name="gen3",
    generation=3,
    sbuf_bytes_per_partition=224 * KIB,  # 28 MiB over 128 partitions (trainium2_arch.rst)
    # The public nki-library budgets 224 KiB - 16 KiB - 8 B (mlp_cte_constants.py); documents print no number.
    sbuf_usable_bytes_per_partition=(224 - 16) * KIB - 8,
    moving_free_max=512,
    moving_free_max_bf16=0,
    tensor_clock_ghz=2.4,  # trainium2_arch.rst
    tensor_rows_per_cycle_8bit=2,  # 158 TFLOPS in fp8 beside 79 in bf16 (trainium2_arch.rst)
    tensor_rows_per_cycle_mx=0,
    tensor_clock_gates=True,
    background_transpose=False,
    bf16_accumulation=False,
    accumulates_on_any_writer=False,
    vector_clock_ghz=0.96,  # trainium2_arch.rst, as the next two
    scalar_clock_ghz=1.2,
    gpsimd_clock_ghz=1.2,
    vector_elements_per_cycle_16bit=4,  # 512 elements for 128 lanes (trainium2_arch.rst)
    vector_elements_per_cycle=2,  # 256 (trainium2_arch.rst)
    scalar_elements_per_cycle_16bit=1,
    vector_excludes_gpsimd_in_sbuf=False,  # trainium2_arch.rst, as the next
    vector_excludes_scalar_in_psum=False,
    dma_engine_theoretical_bytes_per_ns=27.2,
    dma_engine_bytes_per_ns=23.0,
    has_hwdge=True,
    hwdge_blocks=2,  # one each for SyncE and ScalarE (trainium2_arch.rst)
    dma_priorities=0,
    hbm_bytes_per_ns_per_core=362.5,  # half of the pair's
    hbm_bytes_per_ns_per_core_pair=725.0,  # one of 4 stacks of 2.9 TB/s (chip; trainium2_arch.rst rounds to 3)
    cores_per_chip=8,  # trainium2_arch.rst
    hbm_bytes_per_chip=96 * KIB**3,
    logical_core_sizes=(1, 2),  # logical-neuroncore-config
)
GEN4 = Target(
    name="gen4",
    generation=4,
    sbuf_bytes_per_partition=256 * KIB,  # 32 MiB over 128 partitions (trainium3_arch.rst)
    # No document prints the usable size; the reserve is taken to be NeuronCore-v3's.
    sbuf_usable_bytes_per_partition=(256 - 16) * KIB - 8,
    moving_free_max=4096,  # all eight PSUM banks (nc_matmul documentation)
    moving_free_max_bf16=8192,
    tensor_clock_ghz=2.4,  # trainium3_arch.rst
    tensor_rows_per_cycle_8bit=2,
    tensor_rows_per_cycle_mx=4,  # 8x128 elements beside 2x128 (trainium3_arch.rst)
    tensor_clock_gates=True,
    background_transpose=True,
    bf16_accumulation=True,
    # The note that it is undefined names NeuronCore-v2 and v3 only (nc_matmul documentation).
    accumulates_on_any_writer=True,
    vector_clock_ghz=1.2,  # trainium3_arch.rst, as the next two
    scalar_clock_ghz=1.2,
    gpsimd_clock_ghz=1.2,
    vector_elements_per_cycle_16bit=4,  # 512 elements in 16 and 8 bits (trainium3_arch.rst)
    vector_elements_per_cycle=2,  # 256
    scalar_elements_per_cycle_16bit=2,  # 256
    vector_excludes_gpsimd_in_sbuf=False,
    vector_excludes_scalar_in_psum=False,
    dma_engine_theoretical_bytes_per_ns=38.4,
    dma_engine_bytes_per_ns=33.0,
    has_hwdge=True,
    hwdge_blocks=2,
    dma_priorities=4,  # classes of service (trainium3_arch.rst, DMA traffic shaping)
    hbm_bytes_per_ns_per_core=587.5,  # 4.7 TB/s for 8 cores (trainium3_arch.rst; the chip page says 4.9)
    hbm_bytes_per_ns_per_core_pair=1175.0,
    cores_per_chip=8,
    hbm_bytes_per_chip=144 * KIB**3,
    logical_core_sizes=(1, 2),
)

TARGETS: dict[str, Target] = {
    "trn1": GEN2,
    "inf2": GEN2,
    "gen2": GEN2,
    "trn2": GEN3,
    "gen3": GEN3,
    "trn3": GEN4,
    "gen4": GEN4,
}


def find_target(name: str | Target) -> Target:
    """The record for `trn1`, `inf2`, `gen2`, `trn2`, `gen3`, `trn3` or `gen4`."""
    if isinstance(name, Target):
        return name
    try:
        return TARGETS[name]
    except KeyError:
        raise UnsupportedError(f"Unknown target: `{name}`", hint=f"use one of {', '.join(TARGETS)}") from None
