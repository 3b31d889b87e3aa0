"""A key/value cache with new tokens in Triton: the GPU kernel that `kernel.py` replaces.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the cache-writing kernels of vLLM (Apache-2.0), which give every new token a program. No code was taken.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _write(
    out,
    new,
    positions,
    heads,
    slots,
    tokens,
    size,
    slot_step,
    size_step,
    new_step,
    new_size_step,
    BLOCK: tl.constexpr,
):
    """One program per (batch row and head, new token): its `size` values go to the slot of its position."""
    pair = tl.program_id(0)
    token = tl.program_id(1)
    slot = tl.load(positions + pair // heads) + token
    n = tl.arange(0, BLOCK)
    values = tl.load(new + pair * tokens * size + token * new_step + n * new_size_step, n < size)
    tl.store(out + pair * slots * size + slot * slot_step + n * size_step, values, n < size)


def kv_cache_update(
    cache: torch.Tensor, new: torch.Tensor, positions: torch.Tensor, axis: int
) -> torch.Tensor:
    """Returns a tensor like cache [B, G, ..] with row b of `new` along `axis` from positions[b] on; all contiguous."""
    out = cache.clone()
    batch, heads = cache.shape[:2]
    slots, tokens, size = cache.shape[axis], new.shape[axis], cache.shape[5 - axis]
    steps = (size, 1, size, 1) if axis == 2 else (1, slots, 1, tokens)
    _write[(batch * heads, tokens)](
        out, new, positions, heads, slots, tokens, size, *steps, BLOCK=triton.next_power_of_2(size)
    )
    return out
