"""Router of a mixture of experts in Triton: the GPU kernel that `kernel.py` replaces. One program routes one token.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the fused top-k kernels of vLLM (Apache-2.0), which keep a token's scores in registers and take a maximum
at a time, and Triton's tutorials (MIT). No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK_H = 32


@triton.jit
def _logits(x, weight, bias, token, n, features, experts, HAS_BIAS: tl.constexpr, BLOCK_H: tl.constexpr):
    """One token's logits, float32."""
    total = tl.zeros(n.shape, dtype=tl.float32)
    for start in range(0, features, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        row = tl.load(x + token * features + h, h < features, other=0.0).to(tl.float32)
        inside = (h[:, None] < features) & (n[None, :] < experts)
        tile = tl.load(weight + h[:, None] * experts + n[None, :], inside, other=0.0).to(tl.float32)
        total += tl.sum(row[:, None] * tile, 0)
    if HAS_BIAS:
        total += tl.load(bias + n, n < experts, other=0.0).to(tl.float32)
    return total


@triton.jit
def _keep_groups(ranked, n, experts, groups, groups_kept, GROUPS: tl.constexpr, TWO: tl.constexpr):
    """Minus infinity where the group of an expert is not among the best."""
    size = experts // groups
    g = tl.arange(0, GROUPS)
    member = (n[None, :] // size == g[:, None]) & (n[None, :] < experts)
    by_group = tl.where(member, ranked[None, :], float("-inf"))
    worth = tl.max(by_group, 1)
    if TWO:
        first = tl.min(tl.where(by_group == worth[:, None], n[None, :], experts), 1)
        worth += tl.max(tl.where(n[None, :] == first[:, None], float("-inf"), by_group), 1)
    worth = tl.where(g < groups, worth, float("-inf"))
    kept = tl.zeros([GROUPS], dtype=tl.int32)
    for _ in range(groups_kept):
        best = tl.min(tl.where(worth == tl.max(worth, 0), g, GROUPS), 0)
        kept = tl.where(g == best, 1, kept)
        worth = tl.where(g == best, float("-inf"), worth)
    allowed = tl.max(tl.where(member, kept[:, None], 0), 0)
    return tl.where(allowed == 1, ranked, float("-inf"))


@triton.jit
def _route(
    x, weight, bias, correction, logits, scores, indices, features, experts, choices, groups, groups_kept, scale,
    SIGMOID: tl.constexpr, NORMALIZE: tl.constexpr, DENSE: tl.constexpr, TWO: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_CORRECTION: tl.constexpr, GROUPS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    n = tl.arange(0, BLOCK_E)
    inside = n < experts
    exact = _logits(x, weight, bias, token, n, features, experts, HAS_BIAS, BLOCK_H)
    tl.store(logits + token * experts + n, exact.to(logits.dtype.element_ty), inside)
    exact = tl.where(inside, exact, float("-inf"))
    if SIGMOID:
        all_scores = tl.sigmoid(exact)
    else:
        powers = tl.exp(exact - tl.max(exact, 0))
        all_scores = powers / tl.sum(powers, 0)
    ranked = exact
    if HAS_CORRECTION:
        ranked = all_scores + tl.load(correction + n, inside, other=0.0).to(tl.float32)
    elif TWO:
        ranked = all_scores
    ranked = tl.where(inside, ranked, float("-inf"))
    if groups > 1:
        ranked = _keep_groups(ranked, n, experts, groups, groups_kept, GROUPS, TWO)
    taken = tl.zeros([BLOCK_E], dtype=tl.int32)
    for rank in range(choices):
        best = tl.min(tl.where(ranked == tl.max(ranked, 0), n, BLOCK_E), 0)
        tl.store(indices + token * choices + rank, best)
        taken = tl.where(n == best, 1 + rank, taken)
        ranked = tl.where(n == best, float("-inf"), ranked)
    chosen = tl.where(taken > 0, all_scores, 0.0) * scale
    if DENSE:
        tl.store(scores + token * experts + n, chosen.to(scores.dtype.element_ty), inside)
    else:
        if NORMALIZE:
            chosen = chosen / (tl.sum(tl.where(taken > 0, all_scores, 0.0), 0) + 1e-20)
        tl.store(scores + token * choices + taken - 1, chosen.to(scores.dtype.element_ty), taken > 0)


def moe_router(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, correction: torch.Tensor | None,
    function: str, choices: int, groups: int, groups_kept: int, group_rule: str, normalize: bool, scale: float,
    dense: bool, float32_logits: bool, float32_scores: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Returns logits [T, E], scores [T, C] (dense: [T, E]) and indices int32 [T, C] for x [T, H], weight [H, E]."""
    (tokens, features), experts = x.shape, weight.shape[1]
    options = {"device": x.device}
    logits = torch.empty((tokens, experts), dtype=torch.float32 if float32_logits else x.dtype, **options)
    width = experts if dense else choices
    scores = torch.empty((tokens, width), dtype=torch.float32 if float32_scores else x.dtype, **options)
    indices = torch.empty((tokens, choices), dtype=torch.int32, **options)
    _route[(tokens,)](
        x, weight, weight if bias is None else bias, weight if correction is None else correction, logits, scores,
        indices, features, experts, choices, groups, groups_kept, scale,
        SIGMOID=function == "sigmoid", NORMALIZE=normalize, DENSE=dense, TWO=group_rule == "two",
        HAS_BIAS=bias is not None, HAS_CORRECTION=correction is not None, GROUPS=triton.next_power_of_2(groups),
        BLOCK_E=triton.next_power_of_2(experts), BLOCK_H=BLOCK_H,
    )  # fmt: skip
    return logits, scores, indices
