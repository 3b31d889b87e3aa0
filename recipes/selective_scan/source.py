"""The selective scan of Mamba in Triton: the GPU kernel that `kernel.py` replaces.

Origin: written for neuron-port. That the states stay in registers while time runs, and never go to memory, was learnt
from state-spaces/mamba's selective_scan (CUDA, Apache-2.0); no code was taken. License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl

BLOCK_CHANNELS = 32


@triton.jit
def selective_scan_kernel(
    x_pointer, dt_pointer, a_pointer, b_pointer, c_pointer, d_pointer, z_pointer, bias_pointer, y_pointer,
    last_pointer, channels, steps, states, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_STATES: tl.constexpr,
):  # fmt: skip
    """One program per batch row and block of channels: all their states [channels, N], step after step."""
    row, block = tl.program_id(0), tl.program_id(1)
    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    n = tl.arange(0, BLOCK_STATES)
    here = channel < channels
    both = here[:, None] & (n[None, :] < states)
    a = tl.load(a_pointer + channel[:, None] * states + n[None, :], mask=both, other=0.0).to(tl.float32)
    bias = tl.zeros([BLOCK_CHANNELS], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_pointer + channel, mask=here, other=0.0).to(tl.float32)
    skip = tl.zeros([BLOCK_CHANNELS], tl.float32)
    if HAS_D:
        skip = tl.load(d_pointer + channel, mask=here, other=0.0).to(tl.float32)

    state = tl.zeros([BLOCK_CHANNELS, BLOCK_STATES], tl.float32)
    for step in range(steps):
        place = (row * channels + channel) * steps + step
        x = tl.load(x_pointer + place, mask=here, other=0.0).to(tl.float32)
        dt = tl.load(dt_pointer + place, mask=here, other=0.0).to(tl.float32) + bias
        if SOFTPLUS:
            dt = tl.maximum(dt, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(dt)))
        shared = (row * states + n) * steps + step
        b = tl.load(b_pointer + shared, mask=n < states, other=0.0).to(tl.float32)
        c = tl.load(c_pointer + shared, mask=n < states, other=0.0).to(tl.float32)
        state = tl.exp(dt[:, None] * a) * state + (dt * x)[:, None] * b[None, :]
        y = tl.sum(state * c[None, :], 1) + skip * x
        if HAS_Z:
            z = tl.load(z_pointer + place, mask=here, other=0.0).to(tl.float32)
            y = y * z / (1.0 + tl.exp(-z))
        tl.store(y_pointer + place, y, mask=here)
    tl.store(last_pointer + (row * channels + channel[:, None]) * states + n[None, :], state, mask=both)


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor | None,
    z: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    softplus: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns y [B, E, S] and the last state [B, E, N] for x, dt, z [B, E, S], a [E, N], b and c [B, N, S]."""
    batch, channels, steps = x.shape
    states = a.shape[1]
    y = torch.empty_like(x)
    last = torch.empty((batch, channels, states), dtype=torch.float32, device=x.device)
    missing = x.new_zeros(1)
    selective_scan_kernel[(batch, triton.cdiv(channels, BLOCK_CHANNELS))](
        x, dt, a, b, c, missing if d is None else d, missing if z is None else z,
        missing if dt_bias is None else dt_bias, y, last, channels, steps, states,
        HAS_D=d is not None, HAS_Z=z is not None, HAS_BIAS=dt_bias is not None, SOFTPLUS=softplus,
        BLOCK_CHANNELS=BLOCK_CHANNELS, BLOCK_STATES=triton.next_power_of_2(states),
    )  # fmt: skip
    return y, last
