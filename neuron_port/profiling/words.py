"""Quantities and instructions in words: one way to write each, for the terminal, the page and the trace."""

from __future__ import annotations

from neuron_port.simulator.timing.timeline import Roofline, Scheduled
from neuron_port.simulator.trace import NkiInstruction, Operand

LANE_NAMES = {
    "tensor": "TensorE",
    "vector": "VectorE",
    "scalar": "ScalarE",
    "gpsimd": "GpSimdE",
    "sync": "SyncE",
    "dma": "DMA",
}
CAUSES = {
    "start": "nothing held it back",
    "engine": "its engine was busy with",
    "data": "it reads what this wrote:",
    "reuse": "it overwrites what this used:",
    "buffers": "no free memory until this was done:",
    "order": "an explicit order after",
    "lock": "an engine that excludes it ran",
    "core": "the other core:",
}


def time_text(time_ns: float) -> str:
    """A time with three or four digits and its unit."""
    if abs(time_ns) < 1000:
        return f"{time_ns:.0f} ns"
    if abs(time_ns) < 1e6:
        return f"{time_ns / 1e3:.{1 if abs(time_ns) >= 1e5 else 2}f} µs"
    return f"{time_ns / 1e6:.{1 if abs(time_ns) >= 1e8 else 2}f} ms"


def bytes_text(count: float) -> str:
    """A number of bytes with its binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def energy_text(picojoules: float) -> str:
    """An energy with three digits and its unit."""
    for unit, scale in (("nJ", 1e3), ("µJ", 1e6)):
        if picojoules < 1000 * scale:
            return f"{picojoules / scale:.3g} {unit}"
    return f"{picojoules / 1e9:.3g} mJ"


def counted(count: int, one: str) -> str:
    """`1 bank`, `8 banks`."""
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def share_text(share: float) -> str:
    """A part of a whole in percent; what is there but rounds to nothing says so."""
    if 0 < share < 0.001:
        return "<0.1 %"
    return f"{share * 100:.{0 if share >= 0.1 else 1}f} %"


def operand_text(operand: Operand) -> str:
    """`x_sbuf[128, 512] bfloat16 @ sbuf`."""
    shape = ", ".join(str(size) for size in operand.shape)
    return f"{operand.allocation.name}[{shape}] {operand.dtype} @ {operand.allocation.buffer.name}"


def operands_text(instruction: NkiInstruction) -> str:
    """Destinations, an arrow, sources."""
    operands = [operand_text(operand) for operand in instruction.operands]
    return f"{', '.join(operands[: instruction.writes])} ← {', '.join(operands[instruction.writes :]) or 'nothing'}"


def attributes_text(instruction: NkiInstruction) -> str:
    """The facts that operands do not show: operators, tables, modes."""
    shown = {name: value for name, value in instruction.attributes.items() if value not in (None, False, "")}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def cause_text(one: Scheduled) -> str:
    """Why it did not start earlier, without the name of the instruction that it waited for."""
    return CAUSES[one.cause]


def roofs(roofline: Roofline) -> tuple[float, float]:
    """(peak in tera-operations per second for the dtypes used, HBM bandwidth in TB/s) of a kernel with HBM traffic."""
    rate = roofline.hbm_bytes / roofline.memory_ns * 1e-3
    if roofline.compute_ns <= 0:
        return roofline.ridge_operations_per_byte * rate, rate
    return roofline.operations / roofline.compute_ns * 1e-3, rate
