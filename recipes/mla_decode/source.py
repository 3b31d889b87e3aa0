"""Absorbed latent attention of one token over a compressed cache in Triton: the GPU kernel that `kernel.py` replaces.

Origin: written for neuron-port. That up-projections can be absorbed into query and output is from the DeepSeek-V2 paper
(2024); serving it from one compressed cache was learnt from vLLM's Triton decode attention (Apache-2.0), the online
softmax from FlashAttention (BSD-3-Clause); no code was taken.
License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl

BLOCK_SLOTS = 64


@triton.jit
def mla_decode_kernel(
    q_nope_pointer, q_rope_pointer, latent_pointer, rope_pointer, key_up_pointer, value_up_pointer,
    positions_pointer, out_pointer, scale, heads, slots, nope_dim, rope_dim, latent_dim, value_dim,
    BLOCK_SLOTS: tl.constexpr, BLOCK_NOPE: tl.constexpr, BLOCK_ROPE: tl.constexpr,
    BLOCK_LATENT: tl.constexpr, BLOCK_VALUE: tl.constexpr,
):  # fmt: skip
    """One program per (batch row, head): into the latent space, over the slots up to the position, and out of it."""
    batch, head = tl.program_id(0), tl.program_id(1)
    end = tl.load(positions_pointer + batch) + 1
    nope, rope = tl.arange(0, BLOCK_NOPE), tl.arange(0, BLOCK_ROPE)
    latent, value = tl.arange(0, BLOCK_LATENT), tl.arange(0, BLOCK_VALUE)
    row = batch * heads + head

    q_nope = tl.load(q_nope_pointer + row * nope_dim + nope, mask=nope < nope_dim, other=0.0)
    key_up_offsets = (nope[:, None] * heads + head) * latent_dim + latent[None, :]
    key_up_inside = (nope[:, None] < nope_dim) & (latent[None, :] < latent_dim)
    key_up = tl.load(key_up_pointer + key_up_offsets, mask=key_up_inside, other=0.0)
    absorbed = tl.sum(q_nope[:, None].to(tl.float32) * key_up.to(tl.float32), 0)
    q_rope = tl.load(q_rope_pointer + row * rope_dim + rope, mask=rope < rope_dim, other=0.0).to(tl.float32)

    maximum = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    mean = tl.zeros([BLOCK_LATENT], tl.float32)
    for first_slot in range(0, end, BLOCK_SLOTS):
        slot = first_slot + tl.arange(0, BLOCK_SLOTS)
        rows = batch * slots + slot[:, None]
        seen = slot < end
        latent_inside = seen[:, None] & (latent[None, :] < latent_dim)
        cached = tl.load(latent_pointer + rows * latent_dim + latent[None, :], mask=latent_inside, other=0.0)
        rope_inside = seen[:, None] & (rope[None, :] < rope_dim)
        rotated = tl.load(rope_pointer + rows * rope_dim + rope[None, :], mask=rope_inside, other=0.0)

        scores = tl.sum(cached.to(tl.float32) * absorbed[None, :], 1)
        scores = (scores + tl.sum(rotated.to(tl.float32) * q_rope[None, :], 1)) * scale
        scores = tl.where(seen, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 0))
        shrink = tl.exp(maximum - new_maximum)
        weights = tl.exp(scores - new_maximum)
        total = total * shrink + tl.sum(weights, 0)
        mean = mean * shrink + tl.sum(weights[:, None] * cached.to(tl.float32), 0)
        maximum = new_maximum

    value_up_offsets = (latent[:, None] * heads + head) * value_dim + value[None, :]
    value_up_inside = (latent[:, None] < latent_dim) & (value[None, :] < value_dim)
    value_up = tl.load(value_up_pointer + value_up_offsets, mask=value_up_inside, other=0.0)
    out = tl.sum((mean / total)[:, None] * value_up.to(tl.float32), 0)
    tl.store(out_pointer + row * value_dim + value, out, mask=value < value_dim)


def mla_decode(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    latent_cache: torch.Tensor,
    rope_cache: torch.Tensor,
    key_up: torch.Tensor,
    value_up: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Returns [B, Q, E] for contiguous q_nope [B, Q, N], q_rope [B, Q, P] and the caches [B, C, R] and [B, C, P]."""
    batch, heads, nope_dim = q_nope.shape
    slots, latent_dim = latent_cache.shape[1:]
    rope_dim, value_dim = q_rope.shape[2], value_up.shape[2]
    out = torch.empty(batch, heads, value_dim, dtype=q_nope.dtype, device=q_nope.device)
    mla_decode_kernel[(batch, heads)](
        q_nope, q_rope, latent_cache, rope_cache, key_up, value_up, positions, out, scale,
        heads, slots, nope_dim, rope_dim, latent_dim, value_dim,
        BLOCK_SLOTS=BLOCK_SLOTS,
        BLOCK_NOPE=triton.next_power_of_2(nope_dim),
        BLOCK_ROPE=triton.next_power_of_2(rope_dim),
        BLOCK_LATENT=triton.next_power_of_2(latent_dim),
        BLOCK_VALUE=triton.next_power_of_2(value_dim),
    )  # fmt: skip
    return out
