"""One decoding step of a selective state space in Triton: the GPU kernel that `kernel.py` replaces.

Origin: written for neuron-port. The fusion of decay, update, readout, skip and gate in one pass over the state was
learnt from state-spaces/mamba's selective_state_update (Triton, Apache-2.0); no code was taken. License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl

BLOCK_CHANNELS = 32


@triton.jit
def selective_state_update_kernel(
    state_pointer, x_pointer, dt_pointer, a_pointer, b_pointer, c_pointer, d_pointer, z_pointer, bias_pointer,
    y_pointer, new_pointer, channels, states, groups, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_STATES: tl.constexpr,
):  # fmt: skip
    """One program per batch row and block of channels, for all their states [channels, N]."""
    row, block = tl.program_id(0), tl.program_id(1)
    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    n = tl.arange(0, BLOCK_STATES)
    here = channel < channels
    both = here[:, None] & (n[None, :] < states)
    place = row * channels + channel
    old = tl.load(state_pointer + place[:, None] * states + n[None, :], mask=both, other=0.0).to(tl.float32)
    a = tl.load(a_pointer + channel[:, None] * states + n[None, :], mask=both, other=0.0).to(tl.float32)
    x = tl.load(x_pointer + place, mask=here, other=0.0).to(tl.float32)
    dt = tl.load(dt_pointer + place, mask=here, other=0.0).to(tl.float32)
    if HAS_BIAS:
        dt += tl.load(bias_pointer + channel, mask=here, other=0.0).to(tl.float32)
    if SOFTPLUS:
        dt = tl.maximum(dt, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(dt)))
    group = channel // (channels // groups)
    shared = (row * groups + group[:, None]) * states + n[None, :]
    b = tl.load(b_pointer + shared, mask=both, other=0.0).to(tl.float32)
    c = tl.load(c_pointer + shared, mask=both, other=0.0).to(tl.float32)

    new = tl.exp(dt[:, None] * a) * old + (dt * x)[:, None] * b
    y = tl.sum(new * c, 1)
    if HAS_D:
        y += x * tl.load(d_pointer + channel, mask=here, other=0.0).to(tl.float32)
    if HAS_Z:
        z = tl.load(z_pointer + place, mask=here, other=0.0).to(tl.float32)
        y = y * z / (1.0 + tl.exp(-z))
    tl.store(y_pointer + place, y, mask=here)
    tl.store(new_pointer + place[:, None] * states + n[None, :], new, mask=both)


def selective_state_update(
    state: torch.Tensor,
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
    """Returns y [B, R] and the new state [B, R, N] for x, dt, z [B, R], a [R, N], b and c [B, G, N]."""
    batch, channels, states = state.shape
    y, new = torch.empty_like(x), torch.empty_like(state)
    missing = x.new_zeros(1)
    selective_state_update_kernel[(batch, triton.cdiv(channels, BLOCK_CHANNELS))](
        state, x, dt, a, b, c, missing if d is None else d, missing if z is None else z,
        missing if dt_bias is None else dt_bias, y, new, channels, states, b.shape[1],
        HAS_D=d is not None, HAS_Z=z is not None, HAS_BIAS=dt_bias is not None, SOFTPLUS=softplus,
        BLOCK_CHANNELS=BLOCK_CHANNELS, BLOCK_STATES=triton.next_power_of_2(states),
    )  # fmt: skip
    return y, new
