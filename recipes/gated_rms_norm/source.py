"""The GPU kernel that gated_rms_norm replaces, in Triton: one program normalises one group of one row.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: mamba's gated layer norm (Apache-2.0) and fla's fused norm with gate (MIT). No code was taken.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _normalize(
    x, gate, gamma, out, hidden, width, eps,
    GATE_FIRST: tl.constexpr, SIGMOID: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    features = tl.program_id(1) * width + columns
    places = tl.program_id(0).to(tl.int64) * hidden + features
    values = tl.load(x + places, inside, other=0.0).to(tl.float32)
    gates = tl.load(gate + places, inside, other=0.0).to(tl.float32)
    opened = tl.sigmoid(gates)
    if not SIGMOID:
        opened = gates * opened
    if GATE_FIRST:
        values = values * opened
    normal = values * tl.rsqrt(tl.sum(values * values) / width + eps)
    scaled = normal.to(out.dtype.element_ty) * tl.load(gamma + features, inside)
    if not GATE_FIRST:
        scaled = scaled * opened
    tl.store(out + places, scaled, inside)


def gated_rms_norm(
    x: torch.Tensor,
    gate: torch.Tensor,
    gamma: torch.Tensor,
    eps: float,
    gate_first: bool,
    groups: int = 1,
    function: str = "silu",
) -> torch.Tensor:
    """Normalise groups of rows of x [T, H], scale by gamma [H], multiply by f(gate) [T, H]."""
    tokens, hidden = x.shape
    width = hidden // groups
    out = torch.empty_like(x)
    _normalize[(tokens, groups)](
        x, gate, gamma, out, hidden, width, eps,
        GATE_FIRST=gate_first, SIGMOID=function == "sigmoid", BLOCK=triton.next_power_of_2(width),
    )  # fmt: skip
    return out
