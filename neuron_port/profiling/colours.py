"""One colour per opcode, the same in every picture, page and run; distinct for the ones that kernels use most."""

from __future__ import annotations

from collections.abc import Iterable

from neuron_port.simulator.timing.timeline import Scheduled

# Families share a hue: products blue, transposes teal, copies grey, elementwise orange, reductions purple,
# activations red, index work green, DMA brown. All keep a contrast of 3:1 with white.
_FIXED = {
    "nc_matmul": "#2b6cb0",
    "nc_matmul_mx": "#1a4f8a",
    "nc_transpose": "#2c9c94",
    "tensor_copy": "#858d96",
    "memset": "#a9853a",
    "tensor_tensor": "#dd7a1f",
    "tensor_scalar": "#c99700",
    "scalar_tensor_tensor": "#b5560f",
    "reciprocal": "#9b7b12",
    "tensor_reduce": "#8057b5",
    "tensor_scalar_reduce": "#6a3d9a",
    "select_reduce": "#a06cc9",
    "range_select": "#b54f9f",
    "tensor_copy_predicated": "#8f6f91",
    "activation": "#cf3f45",
    "activation_reduce": "#9e2a3a",
    "iota": "#4f9a45",
    "affine_select": "#2f7d3a",
    "dma_copy": "#8d6748",
    "dma_transpose": "#3f7f8c",
    "dma_compute": "#6b4d36",
    "sendrecv": "#b36b8d",
    "core_barrier": "#5b626a",
}
_OTHERS = ("#54719c", "#997fae", "#78883c", "#b0704c", "#3f8f72", "#ad5d6f", "#6f6bb0", "#7f7f3f")


def colours_of(scheduled: Iterable[Scheduled]) -> dict[str, str]:
    """Opcode: colour, for every opcode that occurs, by time spent in it."""
    spent: dict[str, float] = {}
    for one in scheduled:
        opcode = one.instruction.opcode
        spent[opcode] = spent.get(opcode, 0.0) + one.busy_ns
    order = sorted(spent, key=lambda opcode: (-spent[opcode], opcode))
    unknown = sorted(opcode for opcode in order if opcode not in _FIXED)
    given = {opcode: _OTHERS[number % len(_OTHERS)] for number, opcode in enumerate(unknown)}
    return {opcode: _FIXED.get(opcode) or given[opcode] for opcode in order}
