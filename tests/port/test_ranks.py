"""Several ranks as one step: states are taken apart and joined, ranks wait for each other, differences are named."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from neuron_port.errors import ParityError
from neuron_port.port.ranks import Lockstep, RankedStep, Tensors
from neuron_port.types import GraphInput, GraphOutput, GraphSpec, Shard, TensorSpec
from neuron_port.walk import collectives

STATE = TensorSpec(shape=(1, 2, 3), dtype="float32")
SPEC = GraphSpec(
    id="decode_b1_t3",
    phase="decode",
    batch=1,
    sequence_length=1,
    cache_length=3,
    inputs=(
        GraphInput(name="x", role="input", spec=TensorSpec(shape=(1,), dtype="float32")),
        GraphInput(name="cache", role="state", spec=STATE, shard=Shard(ranks=4, axis=1, units=2)),
    ),
    outputs=(
        GraphOutput(name="logits", role="output", spec=TensorSpec(shape=(1,), dtype="float32")),
        GraphOutput(name="cache.new", role="state", spec=STATE, alias_of="cache"),
    ),
)


def test_states_go_in_and_come_out_whole() -> None:
    """Four ranks of two parts: each adds its part's number, and the caller sees one state of twice the size."""
    seen: list[torch.Tensor] = []

    def run(inputs: Sequence[torch.Tensor], states: list[Tensors]) -> list[tuple[Tensors, Tensors]]:
        seen.extend(own for (own,) in states)
        return [([inputs[0]], [own + rank // 2]) for rank, (own,) in enumerate(states)]

    step = RankedStep(SPEC, 4, run)
    assert step.spec.inputs[1].spec.shape == (1, 4, 3)
    whole = torch.arange(12.0).reshape(1, 4, 3)
    (logits,), (cache,) = step([torch.ones(1)], [whole])
    assert logits.tolist() == [1]
    assert torch.equal(seen[0], whole[:, :2])
    assert torch.equal(seen[3], whole[:, 2:])
    assert torch.equal(cache, whole + torch.tensor([0.0, 0, 1, 1])[None, :, None])


@pytest.mark.parametrize(
    ("logits_of_rank_2", "cache_of_rank_1", "named"),
    [(1.5, 0.0, "Ranks 0 and 2 .* `logits`"), (1.0, 0.5, "Ranks 0 and 1 .* `cache.new`")],
)
def test_ranks_that_disagree_are_named(logits_of_rank_2: float, cache_of_rank_1: float, named: str) -> None:
    """Outputs are equal on all ranks, and parts that two ranks share on both: else a sum is missing."""

    def run(inputs: Sequence[torch.Tensor], states: list[Tensors]) -> list[tuple[Tensors, Tensors]]:
        return [
            (
                [torch.tensor([logits_of_rank_2 if rank == 2 else 1.0])],
                [own + (cache_of_rank_1 if rank == 1 else 0)],
            )
            for rank, (own,) in enumerate(states)
        ]

    with pytest.raises(ParityError, match=named):
        RankedStep(SPEC, 4, run)([torch.ones(1)], [torch.zeros(1, 4, 3)])


def test_ranks_meet_at_collectives() -> None:
    """Each rank gets the parts of all, in their order, however often they meet."""

    def work(rank: int) -> tuple[Tensors, Tensors]:
        first = collectives.all_gather(torch.tensor([float(rank)]), 0, 3, "lm_head")
        return [first], [collectives.all_reduce(first * (rank + 1), 3, "down_proj")]

    for (gathered,), (added,) in Lockstep(3).run(work):
        assert gathered.tolist() == [0, 1, 2]
        assert added.tolist() == [0, 6, 12]


def test_the_failure_of_a_rank_ends_all_of_them() -> None:
    """The others wait for a rank that will not come; its own error is what is raised."""

    def work(rank: int) -> tuple[Tensors, Tensors]:
        if rank == 1:
            raise ValueError("rank 1 has no weights")
        return [collectives.all_reduce(torch.ones(1), 3, "down_proj")], []

    with pytest.raises(ValueError, match="rank 1 has no weights"):
        Lockstep(3).run(work)
