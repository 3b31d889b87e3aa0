"""Inputs of problems keep their meaning in another dtype."""

from __future__ import annotations

import torch

from neuron_port.parity.problems import as_dtype, nudged


def test_the_lowest_number_of_a_mask_stays_finite_in_fewer_bits() -> None:
    """float32's lowest number would round to an infinity in bfloat16; it becomes bfloat16's lowest, also when moved."""
    lowest = torch.tensor([torch.finfo(torch.float32).min, -1.5])
    assert not lowest.to(torch.bfloat16).isfinite().all()
    rounded = as_dtype(lowest, torch.bfloat16)
    assert rounded.tolist() == [torch.finfo(torch.bfloat16).min, -1.5]
    assert nudged(rounded, torch.Generator().manual_seed(0)).isfinite().all()


def test_what_is_not_finite_stays_so() -> None:
    """An infinity of the model's own is not hidden."""
    values = torch.tensor([float("-inf"), float("inf"), float("nan")])
    rounded = as_dtype(values, torch.bfloat16)
    assert torch.equal(rounded.isnan(), values.isnan())
    assert torch.equal(rounded.isinf(), values.isinf())
