"""The GPU kernel that rope_table replaces, in Triton: one program makes the tables of one token.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: Liger-Kernel's rope for several position axes (BSD-2-Clause). No code was taken.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _tables(
    positions,
    frequencies,
    cos,
    sin,
    axes,
    tokens,
    count,
    scaling,
    copies,
    between,
    behind,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < count
    angles = tl.zeros((BLOCK,), dtype=tl.float32)
    for axis in range(axes):
        position = tl.load(positions + axis * tokens + token).to(tl.float32)
        angles += position * tl.load(frequencies + axis * count + columns, inside, other=0.0).to(tl.float32)
    for copy in range(copies):
        places = token * count * copies + columns * between + copy * behind
        tl.store(cos + places, tl.cos(angles) * scaling, inside)
        tl.store(sin + places, tl.sin(angles) * scaling, inside)


def rope_table(
    positions: torch.Tensor, frequencies: torch.Tensor, scaling: float, layout: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [T, W] of positions [A, T] times frequencies [A, F], summed over A, times `scaling`."""
    axes, tokens = positions.shape
    count = frequencies.shape[1]
    copies = 1 if layout == "once" else 2
    between, behind = (2, 1) if layout == "interleaved" else (1, count)
    cos = torch.empty((tokens, count * copies), dtype=torch.float32)
    sin = torch.empty_like(cos)
    _tables[(tokens,)](
        positions, frequencies, cos, sin, axes, tokens, count, scaling, copies, between, behind,
        BLOCK=triton.next_power_of_2(count),
    )  # fmt: skip
    return cos, sin
