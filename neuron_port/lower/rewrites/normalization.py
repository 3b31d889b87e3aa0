"""Normalisations with the statistics of groups, of channels, and of training. N = batch, C = channels."""

from __future__ import annotations

import torch

from neuron_port.lower.rewrites.table import rewrites

aten = torch.ops.aten
Normalized = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@rewrites(aten.native_group_norm.default)
def native_group_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    batch: int,
    channels: int,
    positions: int,
    groups: int,
    eps: float,
) -> Normalized:
    """x: [N, C, ..] -> (normalised, mean [N, groups], reciprocal standard deviation [N, groups])."""
    wide = x.to(torch.float32).reshape(batch, groups, -1)
    variance, mean = torch.var_mean(wide, -1, correction=0, keepdim=True)
    scale = torch.rsqrt(variance + eps)
    result = ((wide - mean) * scale).reshape(x.shape)
    result = _affine(result, weight, bias)
    return result.to(x.dtype), mean[..., 0].to(x.dtype), scale[..., 0].to(x.dtype)


@rewrites(aten._native_batch_norm_legit_no_training.default)
def batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor,
    running_variance: torch.Tensor,
    momentum: float,
    eps: float,
) -> Normalized:
    """x: [N, C, ..]. One product and one sum an element; the two factors are made once a channel."""
    scale = torch.rsqrt(running_variance.to(torch.float32) + eps)
    if weight is not None:
        scale = scale * weight.to(torch.float32)
    shift = -running_mean.to(torch.float32) * scale
    if bias is not None:
        shift = shift + bias.to(torch.float32)
    result = _affine(x.to(torch.float32), scale, shift)
    return result.to(x.dtype), x.new_empty(0, dtype=torch.float32), x.new_empty(0, dtype=torch.float32)


@rewrites(aten._native_batch_norm_legit.no_stats)
def instance_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Normalized:
    """Batch normalisation with the batch's own statistics: what instance normalisation is made of."""
    wide = x.to(torch.float32)
    others = [axis for axis in range(x.dim()) if axis != 1]
    variance, mean = torch.var_mean(wide, others, correction=0, keepdim=True)
    scale = torch.rsqrt(variance + eps)
    result = _affine((wide - mean) * scale, weight, bias)
    return result.to(x.dtype), mean.reshape(-1), scale.reshape(-1)


def _affine(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    """x times a weight plus a bias of each channel, in float32."""
    shape = [1, -1, *[1] * (x.dim() - 2)]
    if weight is not None:
        x = x * weight.to(torch.float32).reshape(shape)
    if bias is not None:
        x = x + bias.to(torch.float32).reshape(shape)
    return x
