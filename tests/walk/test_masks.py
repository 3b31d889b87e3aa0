"""Masks that are rules are told as rules, and stand for the very places that transformers' own masks do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import masking_utils

from neuron_port.walk.masks import (
    CAUSAL,
    DATA,
    EVERYTHING,
    MaskStructure,
    additive,
    build_mask,
    data_of,
    structure_of,
    structured_masks,
)
from neuron_port.walk.program import StepState, running

LENGTH = 9


def own_mask(function: Any) -> torch.Tensor:
    """transformers' boolean mask [1, 1, S, S] of a mask function."""
    found = masking_utils.sdpa_mask(
        batch_size=1,
        q_length=LENGTH,
        kv_length=LENGTH,
        mask_function=function,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        use_vmap=False,
    )
    assert found is not None
    return found


def chunked() -> Any:
    return masking_utils.chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.int64))


RULES: dict[str, tuple[Any, MaskStructure]] = {
    "causal": (lambda: masking_utils.causal_mask_function, MaskStructure(after=0)),
    "all": (lambda: masking_utils.bidirectional_mask_function, MaskStructure()),
    "window": (
        lambda: masking_utils.sliding_window_causal_mask_function(3),
        MaskStructure(before=2, after=0),
    ),
    "chunks": (chunked, MaskStructure(after=0, chunk=4)),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_told_and_means_the_same_places(name: str) -> None:
    """Causal, windowed and chunked masks carry their bounds, and the tensor made of these is transformers' own."""
    make, expected = RULES[name]
    with structured_masks():
        function = make()
        mask = build_mask(1, LENGTH, LENGTH, mask_function=function)
    assert structure_of(function) == expected
    assert structure_of(mask) == expected
    assert torch.equal(mask == 0, own_mask(make()))
    assert data_of(mask) is None


def test_a_window_on_both_sides() -> None:
    """A bidirectional window reaches as far back as forth."""
    with structured_masks():
        function = masking_utils.sliding_window_bidirectional_overlay(4)
        mask = build_mask(1, LENGTH, LENGTH, mask_function=function)
    structure = structure_of(mask)
    assert structure.before == structure.after
    assert not structure.is_data
    assert torch.equal(mask == 0, own_mask(masking_utils.sliding_window_bidirectional_overlay(4)))


def test_padding_is_the_only_data_of_a_rule() -> None:
    """Of a causal mask over a padded prompt the rule stays a rule, and the padding alone is a tensor."""
    given = torch.tensor([[1] * 7 + [0] * 2])
    with structured_masks():
        mask = build_mask(1, LENGTH, LENGTH, attention_mask=given)
    assert structure_of(mask) == CAUSAL
    padding = data_of(mask)
    assert padding is not None
    assert padding.shape == (1, 1, 1, LENGTH)
    assert torch.equal(padding[0, 0, 0] == 0, given[0].bool())
    assert torch.equal(mask == 0, (own_mask(masking_utils.causal_mask_function) & given.bool()))


def test_what_no_rule_says_stays_data() -> None:
    """A mask function of a model's own makes the whole mask data, also where a rule is combined with it."""

    def prefix(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return key < 3

    with structured_masks():
        both = masking_utils.or_masks(prefix, masking_utils.causal_mask_function)
        narrowed = masking_utils.and_masks(prefix, masking_utils.causal_mask_function)
        mask = build_mask(1, LENGTH, LENGTH, mask_function=both)
    assert structure_of(prefix) == DATA
    assert structure_of(both) == DATA
    assert structure_of(narrowed).is_data
    assert data_of(mask) is mask
    assert torch.equal(mask == 0, own_mask(both))


def test_two_chunk_sizes_are_no_rule() -> None:
    """A rule knows one size of chunks; the smaller of two windows is one."""
    assert MaskStructure(chunk=4).both(MaskStructure(chunk=6)).is_data
    assert MaskStructure(chunk=4).both(EVERYTHING) == MaskStructure(chunk=4)
    assert MaskStructure(before=4).both(MaskStructure(before=2, after=0)) == MaskStructure(before=2, after=0)


def test_in_decode_queries_stand_at_their_positions() -> None:
    """The one query of a step sees the slots up to its row's position, within its window."""
    positions = torch.tensor([2, 5], dtype=torch.int32)
    with structured_masks(), running(StepState("decode", positions)):
        window = masking_utils.sliding_window_causal_mask_function(3)
        mask = build_mask(2, 1, LENGTH, mask_function=window)
    assert [row.nonzero().flatten().tolist() for row in mask[:, 0, 0] == 0] == [[0, 1, 2], [3, 4, 5]]


def test_the_functions_are_transformers_own_afterwards() -> None:
    """Outside the block nothing is told, and nothing of transformers is replaced."""
    before = masking_utils.and_masks
    with structured_masks():
        assert masking_utils.and_masks is not before
    assert masking_utils.and_masks is before
    assert structure_of(masking_utils.sliding_window_overlay(3)) == DATA


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_places_are_finite(dtype: torch.dtype) -> None:
    """Infinities poison the chip's transposes: what is hidden is the dtype's lowest finite number."""
    mask = additive(torch.tensor([True, False]), dtype)
    assert mask.tolist() == [0.0, torch.finfo(dtype).min]
    assert mask.dtype is dtype
