"""One program on several CPU devices: collectives meet, and what does not fit the ranks is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from neuron_port.errors import LoweringError
from neuron_port.lower import lint
from neuron_port.lower.parallel_execution import ParallelExecutable
from neuron_port.walk import collectives

pytest.importorskip("jaxlib", reason="executing HLO needs neuron-port[verify]")
Lower = Callable[..., Any]


@pytest.fixture(scope="module")
def row_sharded(lower: Lower) -> bytes:
    """x [2, 4] @ weight [4, 8], summed over three ranks, and the weights' first rows side by side; cache + 1."""
    graph = lower(
        lambda weight, x, cache: (
            collectives.all_reduce(x @ weight, 3, "down_proj"),
            collectives.all_gather(weight[:1], 1, 3, "lm_head"),
            cache + 1,
        ),
        (torch.zeros(4, 8), torch.zeros(2, 4), torch.zeros(2, 2)),
        states={2: "cache"},
    )
    hlo: bytes = graph.hlo
    return hlo


def arrays(seed: int, *shape: int) -> list[np.ndarray]:
    """One array for each of three ranks."""
    return list(np.random.default_rng(seed).standard_normal((3, *shape)).astype(np.float32))


def test_ranks_add_up_their_parts(row_sharded: bytes) -> None:
    """Every rank gets the sum of all products and all weights, from weights and inputs of its own."""
    weights, inputs = arrays(0, 4, 8), arrays(1, 2, 4)
    executable = ParallelExecutable(row_sharded, ranks=3).bind({"weight": weights})
    whole, gathered, _ = executable(inputs, arrays(2, 2, 2))
    expected = sum(x @ weight for x, weight in zip(inputs, weights, strict=True))
    for rank in range(3):
        np.testing.assert_allclose(whole[rank], expected, rtol=1e-5)
        np.testing.assert_array_equal(gathered[rank], np.concatenate([w[:1] for w in weights], 1))


def test_states_of_ranks_are_their_own(row_sharded: bytes) -> None:
    """A state is written in place for each rank by itself, and the caller's arrays stay as they are."""
    cache = [np.full((2, 2), rank, np.float32) for rank in range(3)]
    _, _, written = ParallelExecutable(row_sharded, ranks=3)(arrays(0, 4, 8), arrays(1, 2, 4), cache)
    assert [part[0, 0] for part in written] == [1, 2, 3]
    assert [part[0, 0] for part in cache] == [0, 1, 2]


def test_equal_arrays_may_be_one(row_sharded: bytes) -> None:
    """An input that all ranks share is given as the same array, written ones too."""
    same = np.zeros((2, 2), np.float32)
    _, _, written = ParallelExecutable(row_sharded, ranks=3)(arrays(0, 4, 8), arrays(1, 2, 4), [same] * 3)
    assert [part[0, 0] for part in written] == [1, 1, 1]


def test_another_number_of_ranks_is_refused(row_sharded: bytes) -> None:
    """XLA would wait for the third rank for ever."""
    with pytest.raises(LoweringError, match=r"exchanges among \[\[0, 1, 2\]\].* run by the ranks 0 \.\. 1"):
        ParallelExecutable(row_sharded, ranks=2)


def test_a_wrong_slice_is_refused_by_input_and_rank(row_sharded: bytes) -> None:
    """Rank 1 got columns where the graph takes rows."""
    weights = arrays(0, 4, 8)
    weights[1] = weights[1].T.copy()
    with pytest.raises(
        LoweringError, match=r"Input `weight` .* is float32\[4, 8\], rank 1 got float32\(8, 4\)"
    ):
        ParallelExecutable(row_sharded, ranks=3).bind({"weight": weights})


def test_every_rank_needs_its_array(row_sharded: bytes) -> None:
    """Two arrays for three ranks are refused."""
    with pytest.raises(LoweringError, match=r"`weight` .* one array for each of 3 ranks, got 2"):
        ParallelExecutable(row_sharded, ranks=3).bind({"weight": arrays(0, 4, 8)[:2]})


def test_sums_of_floats_pass_the_lint(row_sharded: bytes) -> None:
    """Collectives among all ranks are nothing that neuronx-cc is known to refuse."""
    assert lint(row_sharded, "trn2").findings == ()


def test_sums_of_integers_are_named_by_their_code(lower: Lower) -> None:
    """The collective engine adds in float32 only (NCC_EVRF061)."""
    graph = lower(lambda x: collectives.all_reduce(x, 2, "counts"), (torch.zeros(4, dtype=torch.int32),))
    assert [finding.code for finding in lint(graph.hlo, "trn2").findings] == ["NCC_EVRF061"]
