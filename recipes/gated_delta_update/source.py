"""One token through the gated delta rule in Triton: the GPU kernel that `kernel.py` replaces.

Origin: written for neuron-port. That one program keeps a head's state in registers was learnt from
flash-linear-attention's fused recurrent kernels (Triton, MIT); no code was taken. License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def gated_delta_update_kernel(
    state_pointer, q_pointer, k_pointer, v_pointer, g_pointer, beta_pointer, out_pointer, new_pointer, key_heads,
    heads, depth, width, scale, NORMALIZE: tl.constexpr, BLOCK_DEPTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """One program per batch row and value head: its state [D, E] is read and written once."""
    row, head = tl.program_id(0), tl.program_id(1)
    key_head = head // (heads // key_heads)
    d, e = tl.arange(0, BLOCK_DEPTH), tl.arange(0, BLOCK_WIDTH)
    both = (d[:, None] < depth) & (e[None, :] < width)
    place = row * heads + head
    cells = (place * depth + d[:, None]) * width + e[None, :]
    state = tl.load(state_pointer + cells, mask=both, other=0.0).to(tl.float32)
    key_place = (row * key_heads + key_head) * depth + d
    q = tl.load(q_pointer + key_place, mask=d < depth, other=0.0).to(tl.float32)
    k = tl.load(k_pointer + key_place, mask=d < depth, other=0.0).to(tl.float32)
    if NORMALIZE:
        q = q / tl.sqrt(tl.sum(q * q) + 1e-6)
        k = k / tl.sqrt(tl.sum(k * k) + 1e-6)
    v = tl.load(v_pointer + place * width + e, mask=e < width, other=0.0).to(tl.float32)
    state = state * tl.exp(tl.load(g_pointer + place).to(tl.float32))
    known = tl.sum(state * k[:, None], 0)
    written = (v - known) * tl.load(beta_pointer + place).to(tl.float32)
    state = state + k[:, None] * written[None, :]
    out = tl.sum(state * q[:, None], 0) * scale
    tl.store(out_pointer + place * width + e, out, mask=e < width)
    tl.store(new_pointer + cells, state, mask=both)


def gated_delta_update(
    state: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    normalize: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns out [B, H, E] and the new state [B, H, D, E] for q and k [B, K, D], v [B, H, E], g and beta [B, H]."""
    batch, heads, depth, width = state.shape
    out, new = torch.empty(v.shape, dtype=q.dtype, device=q.device), torch.empty_like(state)
    gated_delta_update_kernel[(batch, heads)](
        state, q, k, v, g, beta, out, new, k.shape[1], heads, depth, width, depth**-0.5, NORMALIZE=normalize,
        BLOCK_DEPTH=triton.next_power_of_2(depth), BLOCK_WIDTH=triton.next_power_of_2(width),
    )  # fmt: skip
    return out, new
