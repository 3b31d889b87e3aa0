"""What moe_router computes, in plain torch.

Places are found by counting, for each score, those that come before it, so that no sort and no top-k is needed: a
compiler lowers comparisons and sums. Of equal scores the first counts as larger.
"""

import torch

LEAST_SUM = 1e-20  # DeepSeek-V3's: keeps scores that are all zero from becoming 0 / 0


def moe_router(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    correction: torch.Tensor | None,
    function: str,
    choices: int,
    groups: int,
    groups_kept: int,
    group_rule: str,
    normalize: bool,
    scale: float,
    dense: bool,
    float32_logits: bool,
    float32_scores: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns logits [T, E], scores [T, C] (dense: [T, E]) and indices int32 [T, C] for x [T, H], weight [H, E]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if float32_logits:
        x, weight = x.to(wide), weight.to(wide)
    logits_TE = torch.matmul(x, weight)
    if bias is not None:
        logits_TE = logits_TE + bias
    exact_TE = logits_TE.to(wide)
    scores_TE = torch.sigmoid(exact_TE) if function == "sigmoid" else torch.softmax(exact_TE, dim=-1)
    ranked_TE = exact_TE if correction is None and group_rule == "max" else scores_TE
    if correction is not None:
        ranked_TE = scores_TE + correction
    if groups > 1:
        ranked_TE = _keep_groups(ranked_TE, groups, groups_kept, group_rule)
    place_TE = _places(ranked_TE)
    chosen_TCE = place_TE[:, None, :] == torch.arange(choices, device=x.device)[None, :, None]
    numbers = torch.arange(weight.shape[1], device=x.device)
    indices_TC = torch.where(chosen_TCE, numbers, 0).sum(-1)
    scores_TC = torch.where(chosen_TCE, scores_TE[:, None, :], 0).sum(-1)
    if function == "softmax" and normalize and correction is None:
        scores_TC = torch.softmax(torch.where(chosen_TCE, exact_TE[:, None, :], 0).sum(-1), dim=-1)
    elif normalize:
        scores_TC = scores_TC / (scores_TC.sum(-1, keepdim=True) + LEAST_SUM)
    if dense:
        scores_TC = torch.where(place_TE < choices, scores_TE, 0)
    scores_TC = (scores_TC * scale).to(wide if float32_scores else x.dtype)
    return logits_TE, scores_TC, indices_TC.to(torch.int32)


def _places(ranked: torch.Tensor) -> torch.Tensor:
    """How many scores of its row come before each score [.., N]: 0 for the largest."""
    numbers = torch.arange(ranked.shape[-1], device=ranked.device)
    mine, others = ranked[..., :, None], ranked[..., None, :]
    before = (others > mine) | ((others == mine) & (numbers[None, :] < numbers[:, None]))
    return before.sum(-1)


def _keep_groups(ranked: torch.Tensor, groups: int, groups_kept: int, group_rule: str) -> torch.Tensor:
    """The scores [T, E], minus infinity where a group is not among the best."""
    by_group = ranked.unflatten(-1, (groups, -1))
    counted = 2 if group_rule == "two" else 1
    worth = torch.where(_places(by_group) < counted, by_group, 0).sum(-1)
    kept = (_places(worth) < groups_kept)[..., None]
    return torch.where(kept, by_group, -torch.inf).flatten(-2)
