"""Every lowered ATen operator against torch on XLA-CPU, in float32 and bfloat16.

A family is one graph, exported and compiled once a dtype; each case is one output of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

pytest.importorskip("jaxlib", reason="executing HLO needs neuron-port[verify]")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
aten = torch.ops.aten

# Inputs of every family: x, y [4, 6] in -2..2; positive [4, 6] in 0.1..2; integers [4, 6] in -7..7;
# indices [4, 3] in 0..3; mask bool [4, 6]; cube [2, 4, 6]; matrix [6, 5]; vector [6].
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "abs": lambda a: a.x.abs(),
    "add_alpha": lambda a: torch.add(a.x, a.y, alpha=2),
    "add_number": lambda a: a.x + 0.1,
    "add_int_float": lambda a: a.integers + a.x,
    "bool_add": lambda a: a.mask + (a.x > 0),
    "atan2": lambda a: torch.atan2(a.x, a.positive),
    "bitwise": lambda a: (a.integers & 3) | (a.integers ^ 5),
    "bitwise_not": lambda a: ~a.mask,
    "ceil": lambda a: a.x.ceil(),
    "clamp": lambda a: a.x.clamp(-0.5, 0.75),
    "clamp_min": lambda a: a.x.clamp_min(0.25),
    "clamp_tensor": lambda a: torch.clamp(a.x, a.y - 1, a.y),
    "cos": lambda a: a.x.cos(),
    "div": lambda a: a.x / a.positive,
    "div_integers": lambda a: a.integers / 4,
    "div_floor": lambda a: torch.div(a.integers, 4, rounding_mode="floor"),
    "div_floor_negative": lambda a: torch.div(a.integers, -3, rounding_mode="floor"),
    "div_trunc": lambda a: torch.div(a.integers, -3, rounding_mode="trunc"),
    "eq": lambda a: a.integers == 2,
    "erf": lambda a: a.x.erf(),
    "exp": lambda a: a.x.exp(),
    "exp2": lambda a: a.x.exp2(),
    "expm1": lambda a: a.x.expm1(),
    "floor": lambda a: a.x.floor(),
    "fmod": lambda a: torch.fmod(a.integers, 4),
    "ge_promotes": lambda a: a.integers >= 0.5,
    "gelu": lambda a: F.gelu(a.x),
    "gelu_tanh": lambda a: F.gelu(a.x, approximate="tanh"),
    "hardswish": lambda a: F.hardswish(a.x),
    "isnan": lambda a: torch.isnan(a.x),
    "isinf": lambda a: torch.isinf(a.x),
    "leaky_relu": lambda a: F.leaky_relu(a.x),
    "log": lambda a: a.positive.log(),
    "log1p": lambda a: a.positive.log1p(),
    "log2": lambda a: a.positive.log2(),
    "logical": lambda a: torch.logical_or(torch.logical_and(a.mask, a.x > 0), torch.logical_not(a.y > 0)),
    "masked_fill": lambda a: a.x.masked_fill(a.mask, -7.0),
    "maximum": lambda a: torch.maximum(a.x, a.y),
    "minimum": lambda a: torch.minimum(a.x, a.y),
    "mish": lambda a: F.mish(a.x),
    "mul_number": lambda a: a.x * 0.08838834764,
    "neg": lambda a: -a.x,
    "pow_2": lambda a: a.x**2,
    "pow_3": lambda a: a.x**3,
    "pow_4": lambda a: a.x**4,
    "pow_half": lambda a: a.positive**0.5,
    "pow_minus_half": lambda a: a.positive**-0.5,
    "pow_other": lambda a: a.positive**1.7,
    "pow_base": lambda a: 2.5**a.x,
    "pow_tensor": lambda a: a.positive**a.y,
    "reciprocal": lambda a: a.positive.reciprocal(),
    "relu": lambda a: a.x.relu(),
    "remainder": lambda a: a.integers % 4,
    "remainder_float": lambda a: torch.remainder(a.integers, -3),
    "round": lambda a: (a.x * 2).round(),
    "rsqrt": lambda a: a.positive.rsqrt(),
    "rsub": lambda a: 1 - a.x,
    "sigmoid": lambda a: a.x.sigmoid(),
    "sign": lambda a: a.x.sign(),
    "silu": lambda a: F.silu(a.x),
    "sin": lambda a: a.x.sin(),
    "softplus": lambda a: F.softplus(a.x),
    "sqrt": lambda a: a.positive.sqrt(),
    "sub_alpha": lambda a: torch.sub(a.x, a.y, alpha=0.5),
    "tan": lambda a: (a.x / 2).tan(),
    "tanh": lambda a: a.x.tanh(),
    "to_bool": lambda a: a.integers.to(torch.bool),
    "to_int": lambda a: (a.x * 3).to(torch.int32),
    "to_int64": lambda a: (a.x * 3).long() + 1,
    "trunc": lambda a: a.x.trunc(),
    "where": lambda a: torch.where(a.mask, a.x, a.y),
    "where_number": lambda a: torch.where(a.mask, a.x, 0.1),
    "xor_broadcast": lambda a: a.mask[:1] ^ a.mask,
}
SHAPE: dict[str, Callable[..., Any]] = {
    "arange": lambda a: a.x + torch.arange(1, 13, 2, device=a.x.device),
    "arange_float": lambda a: torch.arange(6, dtype=torch.float32) * 0.5,
    "cat": lambda a: torch.cat([a.x, a.y, a.x[:1]], 0),
    "cat_last": lambda a: torch.cat([a.x[..., 3:], -a.x[..., :3]], -1),
    "chunk": lambda a: a.x.chunk(3, dim=-1)[1],
    "constant_pad": lambda a: F.pad(a.x, (1, 2, 0, 1), value=3.0),
    "constant_pad_cut": lambda a: F.pad(a.x, (-1, 2)),
    "empty_like": lambda a: torch.empty_like(a.x) * 0,
    "expand": lambda a: a.vector[None, None, :].expand(2, 3, 6),
    "flatten": lambda a: a.cube.flatten(1),
    "flip": lambda a: a.x.flip(0, 1),
    "full": lambda a: torch.full((2, 3), 0.1) + 1,
    "full_like": lambda a: torch.full_like(a.x, 2),
    "movedim": lambda a: a.cube.movedim(0, 2),
    "new_ones": lambda a: a.x.new_ones(3),
    "permute": lambda a: a.cube.permute(2, 0, 1),
    "repeat": lambda a: a.x.repeat(2, 1, 3),
    "repeat_interleave": lambda a: a.cube.repeat_interleave(3, 1),
    "roll": lambda a: a.x.roll(2, 1),
    "scalar_tensor": lambda a: a.x * torch.tensor(0.3),
    "select": lambda a: a.cube[:, -2],
    "select_scatter": lambda a: torch.select_scatter(a.x, a.vector, 0, -1),
    "slice": lambda a: a.x[1:-1, ::2],
    "slice_beyond": lambda a: a.x[:, 2:100],
    "slice_empty": lambda a: torch.cat([a.x[:, 5:2], a.y], 1),
    "slice_scatter": lambda a: torch.slice_scatter(a.x, a.y[1:3], 0, 1, 3),
    "split": lambda a: torch.cat(a.x.split([1, 2, 3], -1)[::-1], -1),
    "squeeze": lambda a: a.x[None, :, None].squeeze(),
    "stack": lambda a: torch.stack([a.x, a.y], 1),
    "transpose": lambda a: a.cube.transpose(0, -1),
    "tril": lambda a: a.x.tril(1),
    "triu": lambda a: a.x.triu(-1),
    "unbind": lambda a: a.cube.unbind(1)[2],
    "unflatten": lambda a: a.x.unflatten(1, (2, 3)),
    "view": lambda a: a.cube.view(4, -1),
    "zeros": lambda a: torch.zeros(2, 2) + a.x[:2, :2],
}
REDUCTION: dict[str, Callable[..., Any]] = {
    "all": lambda a: (a.x > -1).all(1),
    "amax": lambda a: a.x.amax((0, 1)),
    "amin": lambda a: a.x.amin(-1, keepdim=True),
    "any": lambda a: a.mask.any(),
    "any_dim": lambda a: a.mask.any(0, keepdim=True),
    "cumsum": lambda a: a.cube.cumsum(-1),
    "cumsum_integers": lambda a: a.integers.cumsum(0),
    "cumsum_mask": lambda a: a.mask.long().cumsum(1) - 1,
    "group_norm": lambda a: F.group_norm(a.cube, 2),
    "layer_norm": lambda a: F.layer_norm(a.cube, (6,), a.vector, a.vector, 1e-5),
    "layer_norm_plain": lambda a: F.layer_norm(a.cube, (4, 6)),
    "log_softmax": lambda a: a.x.log_softmax(-1),
    "logsumexp": lambda a: a.x.logsumexp(0),
    "max": lambda a: a.x.max(),
    "max_dim": lambda a: a.x.max(1).values,
    "max_dim_index": lambda a: a.x.max(1, keepdim=True).indices,
    "mean": lambda a: a.x.mean(),
    "mean_dim": lambda a: a.cube.mean((0, 2), keepdim=True),
    "min_dim_index": lambda a: a.x.min(0).indices,
    "norm": lambda a: a.x.norm(dim=-1),
    "prod": lambda a: a.positive.prod(1),
    "rms_norm": lambda a: F.rms_norm(a.x, (6,), a.vector, 1e-6),
    "softmax": lambda a: a.cube.softmax(1),
    "softmax_float32": lambda a: F.softmax(a.x, -1, dtype=torch.float32),
    "std": lambda a: a.x.std(1),
    "sum": lambda a: a.x.sum(),
    "sum_bool": lambda a: a.mask.sum(1),
    "sum_dims": lambda a: a.cube.sum((0, 2)),
    "var_mean": lambda a: torch.var_mean(a.x, 1, correction=0)[0],
}
SELECTION: dict[str, Callable[..., Any]] = {
    "argmax": lambda a: a.x.argmax(-1),
    "argmax_all": lambda a: a.x.argmax(),
    "argmin": lambda a: a.x.argmin(0, keepdim=True),
    "sort_values": lambda a: a.x.sort(-1).values,
    "sort_indices": lambda a: a.x.sort(0, descending=True).indices,
    "argsort": lambda a: a.x.argsort(dim=-1, stable=True),
    "topk_values": lambda a: a.x.topk(3).values,
    "topk_indices": lambda a: a.x.topk(3).indices,
    "topk_smallest": lambda a: a.x.topk(2, dim=0, largest=False).values,
    "topk_masked": lambda a: a.x.masked_fill(a.x < 1e9, -torch.inf).topk(6).indices.sort(-1).values,
    "topk_many": lambda a: a.cube.flatten().repeat(2).topk(70).values,
}
INDEXING: dict[str, Callable[..., Any]] = {
    "embedding": lambda a: F.embedding(a.indices, a.matrix),
    "gather": lambda a: a.x.gather(1, a.indices),
    "gather_rows": lambda a: a.x.gather(0, a.indices),
    "index": lambda a: a.x[a.indices],
    "index_negative": lambda a: a.x[a.indices - 4],
    "index_pair": lambda a: a.cube[:, a.indices, a.indices + 1],
    "index_apart": lambda a: a.cube[a.indices % 2, :, a.indices],
    "index_middle": lambda a: a.cube[:, a.indices],
    "index_iota": lambda a: a.x[torch.arange(4), a.indices[:, 0]],
    "index_select": lambda a: a.cube.index_select(2, a.indices[0]),
    "index_put": lambda a: a.x.index_put((a.indices[:, 0],), a.y[:1]),
    "index_put_add": lambda a: a.x.index_put((a.indices[:, 0], a.indices[:, 1]), a.y[:, 0], accumulate=True),
    "index_add": lambda a: a.x.index_add(0, a.indices[0], a.y[:3]),
    "scatter": lambda a: a.x.scatter(1, torch.arange(3).expand(4, 3), a.y),
    "scatter_value": lambda a: torch.zeros_like(a.x).scatter(1, a.indices, 1.0),
    "scatter_add": lambda a: a.x.scatter_add(1, a.indices, a.y),
    "one_hot": lambda a: F.one_hot(a.indices, 4),
}
MATMUL: dict[str, Callable[..., Any]] = {
    "addmm": lambda a: torch.addmm(a.matrix[0], a.x, a.matrix, beta=2, alpha=0.5),
    "baddbmm": lambda a: torch.baddbmm(a.cube[:, :, :4], a.cube, a.cube.transpose(1, 2)),
    "bmm": lambda a: torch.bmm(a.cube.transpose(1, 2), a.cube),
    "dot": lambda a: torch.dot(a.vector, a.x[0]),
    "einsum": lambda a: torch.einsum("bij,jk->bik", a.cube, a.matrix),
    "linear": lambda a: F.linear(a.cube, a.matrix.t().contiguous(), a.matrix[0]),
    "linear_transposed": lambda a: F.linear(a.x, a.matrix.t()),
    "matmul_broadcast": lambda a: torch.matmul(a.cube[:, None], a.matrix),
    "mv": lambda a: torch.mv(a.x, a.vector),
    "conv1d": lambda a: F.conv1d(a.cube, a.x[:, :3].reshape(4, 1, 3), groups=4, padding=2),
    "conv2d": lambda a: F.conv2d(
        a.cube[None], a.x.reshape(3, 2, 2, 2), a.vector[:3], stride=2, dilation=(1, 2)
    ),
    "attention": lambda a: F.scaled_dot_product_attention(*[a.cube[None]] * 3),
    "attention_causal": lambda a: F.scaled_dot_product_attention(*[a.cube[None]] * 3, is_causal=True),
    "attention_mask": lambda a: F.scaled_dot_product_attention(
        *[a.cube[None]] * 3, attn_mask=a.mask[:, :4] | torch.eye(4, dtype=torch.bool), scale=0.3
    ),
    "attention_grouped": lambda a: F.scaled_dot_product_attention(
        a.cube.repeat(2, 1, 1)[None], a.cube[None], a.cube[None], enable_gqa=True
    ),
}
FAMILIES = {
    "elementwise": ELEMENTWISE,
    "shape": SHAPE,
    "reduction": REDUCTION,
    "selection": SELECTION,
    "indexing": INDEXING,
    "matmul": MATMUL,
}
NAMES = ("x", "y", "positive", "integers", "indices", "mask", "cube", "matrix", "vector")


class Inputs:
    """The inputs of a case, by name."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self.__dict__.update(zip(NAMES, tensors, strict=True))


def _draw(dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    permuted = torch.stack(
        [torch.randperm(24) for _ in range(2)]
    )  # no two elements equal: ties have no fixed order
    x, y = ((row.reshape(4, 6) - 10.2) / 6 for row in permuted)
    positive = torch.rand(4, 6) * 1.9 + 0.1
    integers, indices = torch.randint(-7, 8, (4, 6)), torch.randint(0, 4, (4, 3))
    floats = [x, y, positive, torch.randn(2, 4, 6), torch.randn(6, 5), torch.randn(6)]
    x, y, positive, cube, matrix, vector = (tensor.to(dtype) for tensor in floats)
    return [x, y, positive, integers, indices, torch.rand(4, 6) > 0.5, cube, matrix, vector]


def _family(functions: dict[str, Callable[..., Any]], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(function(Inputs(*tensors)) for function in functions.values())


@pytest.fixture(scope="session")
def results(lower: Callable[..., Any]) -> Callable[[str, str], dict[str, torch.Tensor]]:
    """The outputs of a family on XLA-CPU, computed once."""
    done: dict[tuple[str, str], dict[str, torch.Tensor]] = {}

    def of(family: str, dtype: str) -> dict[str, torch.Tensor]:
        if (family, dtype) not in done:
            tensors = _draw(DTYPES[dtype])
            graph = lower(partial(_family, FAMILIES[family]), tensors)
            done[family, dtype] = dict(zip(FAMILIES[family], graph.run(*tensors), strict=True))
        return done[family, dtype]

    return of


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family in FAMILIES for name in FAMILIES[family]]
)
def test_operator_agrees_with_torch(family: str, name: str, dtype: str, results: Callable[..., Any]) -> None:
    """The emitted operator gives torch's result; in bfloat16, the float32 result rounded about once."""
    actual = results(family, dtype)[name]
    tensors = _draw(DTYPES[dtype])
    expected = FAMILIES[family][name](Inputs(*tensors))
    assert actual.shape == expected.shape
    assert actual.dtype == (torch.int32 if expected.dtype == torch.int64 else expected.dtype)
    if not expected.dtype.is_floating_point:
        assert torch.equal(actual.to(expected.dtype), expected)
        return
    wide = FAMILIES[family][name](Inputs(*[_widen(tensor) for tensor in tensors])).float()
    roundings = 2.0**-6 if dtype == "bfloat16" else 3e-6
    limit = roundings * wide.abs().clamp_min(wide.abs().mean())
    assert ((actual.float() - wide).abs() <= limit).all(), (actual, wide)


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype.is_floating_point else tensor
