"""State-space duality (Mamba-2) in Triton, in its recurrent form: the GPU kernel that `kernel.py` replaces.

Origin: written for neuron-port. The layout of heads and groups follows state-spaces/mamba's chunk scan (Triton,
Apache-2.0); no code was taken. Here a head's state stays in registers and tokens follow one another; `kernel.py` takes
them by chunks. License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def ssd_kernel(
    x_pointer, dt_pointer, a_pointer, b_pointer, c_pointer, d_pointer, bias_pointer, initial_pointer, y_pointer,
    last_pointer, tokens, heads, head_dim, groups, states, dt_low, dt_high, HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr, SOFTPLUS: tl.constexpr, BLOCK_DIM: tl.constexpr,
    BLOCK_STATES: tl.constexpr,
):  # fmt: skip
    """One program per batch row and head: its state [D, N], token after token."""
    row, head = tl.program_id(0), tl.program_id(1)
    p, n = tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_STATES)
    both = (p[:, None] < head_dim) & (n[None, :] < states)
    cells = ((row * heads + head) * head_dim + p[:, None]) * states + n[None, :]
    state = tl.zeros([BLOCK_DIM, BLOCK_STATES], tl.float32)
    if HAS_INITIAL:
        state = tl.load(initial_pointer + cells, mask=both, other=0.0).to(tl.float32)
    rate = tl.load(a_pointer + head).to(tl.float32)
    group = head // (heads // groups)
    for token in range(tokens):
        step = tl.load(dt_pointer + (row * tokens + token) * heads + head).to(tl.float32)
        if HAS_BIAS:
            step += tl.load(bias_pointer + head).to(tl.float32)
        if SOFTPLUS:
            step = tl.maximum(step, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(step)))
        step = tl.minimum(tl.maximum(step, dt_low), dt_high)
        place = ((row * tokens + token) * heads + head) * head_dim + p
        x = tl.load(x_pointer + place, mask=p < head_dim, other=0.0).to(tl.float32)
        shared = ((row * tokens + token) * groups + group) * states + n
        b = tl.load(b_pointer + shared, mask=n < states, other=0.0).to(tl.float32)
        c = tl.load(c_pointer + shared, mask=n < states, other=0.0).to(tl.float32)
        state = tl.exp(step * rate) * state + (step * x)[:, None] * b[None, :]
        y = tl.sum(state * c[None, :], 1)
        if HAS_D:
            y += x * tl.load(d_pointer + head).to(tl.float32)
        tl.store(y_pointer + place, y, mask=p < head_dim)
    tl.store(last_pointer + cells, state, mask=both)


def ssd(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    initial: torch.Tensor | None,
    softplus: bool,
    dt_low: float,
    dt_high: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns y [B, S, H, D] and the last state [B, H, D, N] for x [B, S, H, D], dt [B, S, H], b and c [B, S, G, N]."""
    batch, tokens, heads, head_dim = x.shape
    groups, states = b.shape[2:]
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    last = torch.empty((batch, heads, head_dim, states), dtype=torch.float32, device=x.device)
    missing = x.new_zeros(1)
    ssd_kernel[(batch, heads)](
        x, dt, a, b, c, missing if d is None else d, missing if dt_bias is None else dt_bias,
        missing if initial is None else initial, y, last, tokens, heads, head_dim, groups, states, dt_low, dt_high,
        HAS_D=d is not None, HAS_BIAS=dt_bias is not None, HAS_INITIAL=initial is not None, SOFTPLUS=softplus,
        BLOCK_DIM=triton.next_power_of_2(head_dim), BLOCK_STATES=triton.next_power_of_2(states),
    )  # fmt: skip
    return y, last
