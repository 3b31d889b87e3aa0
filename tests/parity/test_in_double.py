"""A layer's truth is computed in float64 even where its code widens to float32."""

from __future__ import annotations

import torch

from neuron_port.parity.in_double import InDouble


def norm(x: torch.Tensor) -> torch.Tensor:
    """Widens to float32 in the three ways that models do."""
    wide = x.float()
    scale = torch.rsqrt(wide.to(torch.float32).pow(2).mean(-1, keepdim=True))
    return torch.softmax(wide * scale, dim=-1, dtype=torch.float32)


def exact(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)), dim=-1)


def test_widening_to_float32_does_not_narrow_float64():
    """`.float()`, `.to(torch.float32)` and `dtype=torch.float32` keep a float64 tensor as it is."""
    x = torch.randn(4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with InDouble():
        found = norm(x)
    assert found.dtype is torch.float64
    torch.testing.assert_close(found, exact(x), rtol=1e-14, atol=0)


def test_without_it_the_truth_has_float32_errors():
    """The same forward outside the mode is off by float32's rounding."""
    x = torch.randn(4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (norm(x).double() - exact(x)).abs().max() > 1e-9


def test_other_dtypes_are_left_alone():
    """A bfloat16 tensor still widens to float32, and integers become float32."""
    with InDouble():
        assert norm(torch.ones(2, 4, dtype=torch.bfloat16)).dtype is torch.float32
        assert torch.arange(3).float().dtype is torch.float32
