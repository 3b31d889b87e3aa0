"""The machines: one frozen record per NeuronCore generation, each number with its source."""

from __future__ import annotations

from dataclasses import dataclass

from neuron_port.simulator.errors import UnsupportedError

KIB = 1024


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the simulator needs to know of one NeuronCore."""

    name: str
    generation: int
    sbuf_bytes_per_partition: int
    sbuf_usable_bytes_per_partition: int
    partitions: int = 128  # all generations (trainium_inferentia2_arch.rst)
    psum_banks: int = 8  # 16 KiB per partition in 8 banks (trainium_inferentia2_arch.rst)
    psum_bank_bytes: int = 2 * KIB  # 512 float32 values
    moving_free_max: int = 512  # nc_matmul documentation, NeuronCore-v2 and v3
    stationary_free_max: int = 128


GEN2 = Target(
    name="gen2",
    generation=2,
    sbuf_bytes_per_partition=192 * KIB,  # 24 MiB over 128 partitions (trainium_inferentia2_arch.rst)
    # 16 KiB are reserved (SBUF allocation text of the Neuron 2.26 documentation).
    sbuf_usable_bytes_per_partition=(192 - 16) * KIB,
)
GEN3 = Target(
    name="gen3",
    generation=3,
    sbuf_bytes_per_partition=224 * KIB,  # 28 MiB over 128 partitions (trainium2_arch.rst)
    # The public nki-library budgets 224 KiB - 16 KiB - 8 B (mlp_cte_constants.py); documents print no number.
    sbuf_usable_bytes_per_partition=(224 - 16) * KIB - 8,
)

TARGETS: dict[str, Target] = {"trn1": GEN2, "inf2": GEN2, "gen2": GEN2, "trn2": GEN3, "gen3": GEN3}


def find_target(name: str | Target) -> Target:
    """The record for `trn1`, `inf2`, `gen2`, `trn2` or `gen3`."""
    if isinstance(name, Target):
        return name
    try:
        return TARGETS[name]
    except KeyError:
        raise UnsupportedError(f"Unknown target: `{name}`", hint=f"use one of {', '.join(TARGETS)}") from None
