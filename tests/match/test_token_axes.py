"""Which axes of a call's tensors count tokens."""

from __future__ import annotations

import torch

from neuron_port.match.probe import token_axes


def test_one_axis_counts_tokens_whatever_its_size() -> None:
    """A number names one axis, from the front or the back; one that a tensor does not have is no axis of it."""
    assert token_axes(torch.empty(2, 1, 8), -2) == [-2]
    assert token_axes(torch.empty(2, 1, 8), 1) == [1]
    assert token_axes(torch.empty(8), -2) == []
    assert token_axes(torch.empty(2, 8), None) == []


def test_several_axes_count_tokens_where_nothing_is_spread() -> None:
    """A tuple names several; an axis of size 1 is spread over the tokens and stays as it is."""
    assert token_axes(torch.empty(1, 4, 9, 9), (2, 3)) == [2, 3]
    assert token_axes(torch.empty(1, 1, 1, 9), (2, 3)) == [3]
    assert token_axes(torch.empty(4), (2, 3)) == []
