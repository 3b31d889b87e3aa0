"""The GPU kernel that activation replaces, in Triton: one program maps one block of elements.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: Triton's tutorials (MIT) and FlagGems' pointwise operators (Apache-2.0). No code was taken.
"""

import torch
import triton
import triton.language as tl

FUNCTIONS = (
    "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "relu6", "silu", "sigmoid", "tanh", "softplus", "mish",
    "hard_swish", "exp",
)  # fmt: skip


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def _map(x_pointer, out, count, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    x = tl.load(x_pointer + places, inside, other=0.0).to(tl.float32)
    if FUNCTION == 0:
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif FUNCTION == 1:
        y = 0.5 * x * (1 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif FUNCTION == 2:
        y = x * tl.sigmoid(1.702 * x)
    elif FUNCTION == 3:
        y = tl.maximum(x, 0.0)
    elif FUNCTION == 4:
        y = tl.maximum(x, 0.0) * x
    elif FUNCTION == 5:
        y = tl.minimum(tl.maximum(x, 0.0), 6.0)
    elif FUNCTION == 6:
        y = x * tl.sigmoid(x)
    elif FUNCTION == 7:
        y = tl.sigmoid(x)
    elif FUNCTION == 8:
        y = _tanh(x)
    elif FUNCTION == 9:
        y = _softplus(x)
    elif FUNCTION == 10:
        y = x * _tanh(_softplus(x))
    elif FUNCTION == 11:
        y = x * tl.minimum(tl.maximum(x + 3, 0.0), 6.0) / 6
    else:
        y = tl.exp(x)
    tl.store(out + places, y, inside)


def activation(x: torch.Tensor, function: str) -> torch.Tensor:
    """Apply `function` to every element of x."""
    out = torch.empty_like(x)
    block = 1024
    grid = (triton.cdiv(x.numel(), block),)
    _map[grid](x, out, x.numel(), FUNCTION=FUNCTIONS.index(function), BLOCK=block)
    return out
