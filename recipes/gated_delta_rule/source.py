"""The gated delta rule in Triton, in its recurrent form: the GPU kernel that `kernel.py` replaces.

Origin: written for neuron-port. That one program keeps a head's state in registers was learnt from
flash-linear-attention's fused recurrent kernels (Triton, MIT); no code was taken. `kernel.py` takes tokens by chunks.
License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def gated_delta_rule_kernel(
    q_pointer, k_pointer, v_pointer, g_pointer, beta_pointer, initial_pointer, out_pointer, last_pointer, tokens,
    key_heads, heads, depth, width, scale, HAS_INITIAL: tl.constexpr, NORMALIZE: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """One program per batch row and value head: its state [D, E], token after token."""
    row, head = tl.program_id(0), tl.program_id(1)
    key_head = head // (heads // key_heads)
    d, e = tl.arange(0, BLOCK_DEPTH), tl.arange(0, BLOCK_WIDTH)
    both = (d[:, None] < depth) & (e[None, :] < width)
    cells = ((row * heads + head) * depth + d[:, None]) * width + e[None, :]
    state = tl.zeros([BLOCK_DEPTH, BLOCK_WIDTH], tl.float32)
    if HAS_INITIAL:
        state = tl.load(initial_pointer + cells, mask=both, other=0.0).to(tl.float32)
    for token in range(tokens):
        key_place = ((row * tokens + token) * key_heads + key_head) * depth + d
        q = tl.load(q_pointer + key_place, mask=d < depth, other=0.0).to(tl.float32)
        k = tl.load(k_pointer + key_place, mask=d < depth, other=0.0).to(tl.float32)
        if NORMALIZE:
            q = q / tl.sqrt(tl.sum(q * q) + 1e-6)
            k = k / tl.sqrt(tl.sum(k * k) + 1e-6)
        time = (row * tokens + token) * heads + head
        v = tl.load(v_pointer + time * width + e, mask=e < width, other=0.0).to(tl.float32)
        state = state * tl.exp(tl.load(g_pointer + time).to(tl.float32))
        known = tl.sum(state * k[:, None], 0)
        written = (v - known) * tl.load(beta_pointer + time).to(tl.float32)
        state = state + k[:, None] * written[None, :]
        out = tl.sum(state * q[:, None], 0) * scale
        tl.store(out_pointer + time * width + e, out, mask=e < width)
    tl.store(last_pointer + cells, state, mask=both)


def gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial: torch.Tensor | None,
    normalize: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns out [B, S, H, E] and the last state [B, H, D, E].

    q, k: [B, S, K, D]; v: [B, S, H, E]; g, beta: [B, S, H].
    """
    batch, tokens, key_heads, depth = k.shape
    heads, width = v.shape[2:]
    out = torch.empty(v.shape, dtype=q.dtype, device=q.device)
    last = torch.empty((batch, heads, depth, width), dtype=torch.float32, device=q.device)
    gated_delta_rule_kernel[(batch, heads)](
        q, k, v, g, beta, q.new_zeros(1) if initial is None else initial, out, last, tokens, key_heads, heads, depth,
        width, depth**-0.5, HAS_INITIAL=initial is not None, NORMALIZE=normalize,
        BLOCK_DEPTH=triton.next_power_of_2(depth), BLOCK_WIDTH=triton.next_power_of_2(width),
    )  # fmt: skip
    return out, last
