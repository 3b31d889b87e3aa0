"""A batch whose rows have sequences of their own: who is in which row, and what each step is given."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from neuron_port.errors import UsageError
from neuron_port.port.generate import Batch, Session
from neuron_port.types import GraphInput, GraphSpec, Phase, TensorSpec

ROWS, SLOTS, VOCABULARY = 3, 8, 50


class Diary:
    """A graph whose state is the tokens of every row by slot, and whose logits say what the row has read so far.

    The logits' largest element is the sum of the row's tokens up to its position.
    """

    def __init__(self, phase: Phase, length: int, *, fills_bucket: bool = False) -> None:
        batch = ROWS if phase == "decode" else 1
        inputs = [("input_ids", (batch, length)), ("positions", (batch,))]
        inputs += [("slot", (1,))] if phase == "prefill" else []
        specs = {name: TensorSpec(shape=shape, dtype="int32") for name, shape in inputs}
        state = TensorSpec(shape=(ROWS, SLOTS), dtype="int32")
        self.given: list[dict[str, list[int]]] = []
        self.spec = GraphSpec(
            id=phase,
            phase=phase,
            batch=batch,
            sequence_length=length,
            cache_length=SLOTS,
            fills_bucket=fills_bucket,
            inputs=(
                *(GraphInput(name=name, role="input", spec=spec) for name, spec in specs.items()),
                GraphInput(name="diary", role="state", spec=state),
            ),
            outputs=(),
        )

    def __call__(
        self, inputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        ids, positions, *slot = inputs
        self.given.append({"ids": ids.flatten().tolist(), "positions": positions.tolist()})
        diary = states[0].clone()
        rows = slot[0].tolist() if slot else range(ROWS)
        for line, row in enumerate(rows):
            first = 0 if slot else int(positions[line])
            diary[row, first : first + ids.shape[1]] = ids[line]
        read = [int(diary[row, : int(positions[line]) + 1].sum()) for line, row in enumerate(rows)]
        return [torch.nn.functional.one_hot(torch.tensor(read), VOCABULARY).float()], [diary]


def batch(*buckets: int, fills_bucket: bool = False) -> tuple[Batch, Diary]:
    decode = Diary("decode", 1)
    return Batch(
        {size: Diary("prefill", size, fills_bucket=fills_bucket) for size in buckets}, decode
    ), decode


def read(logits: torch.Tensor | None) -> int:
    assert logits is not None
    return int(logits.argmax())


def test_each_row_goes_on_from_its_own_prompt_at_its_own_position() -> None:
    """Prompts that come at different times are decoded together; a row that was left is taken by another."""
    running, decode = batch(4)
    assert read(running.start(2, [1, 2, 3])) == 6
    assert {row: read(logits) for row, logits in running.advance({2: 4}).items()} == {2: 10}
    assert read(running.start(0, [7])) == 7
    assert running.idle == [1]
    answers = running.advance({0: 1, 2: 5})
    assert {row: read(logits) for row, logits in answers.items()} == {0: 8, 2: 15}
    assert decode.given[-1] == {"ids": [1, 0, 5], "positions": [1, 0, 4]}
    running.finish(2)
    assert read(running.start(2, [9, 9])) == 18
    assert {row: read(logits) for row, logits in running.advance({0: 1, 2: 2}).items()} == {0: 9, 2: 20}


def test_a_prompt_beyond_its_bucket_is_taken_a_token_a_step() -> None:
    """Where prompts must fill their bucket the rest follows with the other rows' steps, and logits come after it."""
    running, decode = batch(2, 4, fills_bucket=True)
    assert read(running.start(1, [1, 2])) == 3
    assert running.start(0, [1, 2, 3, 4, 5, 6]) is None
    assert {row: read(logits) for row, logits in running.advance({1: 7}).items()} == {1: 10}
    assert {row: read(logits) for row, logits in running.advance({1: 8}).items()} == {0: 21, 1: 18}
    assert [step["ids"] for step in decode.given] == [[5, 7, 0], [6, 8, 0]]
    assert decode.given[-1]["positions"] == [5, 3, 0]


def test_a_prompt_shorter_than_every_bucket_begins_from_nothing() -> None:
    """A row in which no prefill runs is cleared of what another prompt has left there."""
    running, _ = batch(4, fills_bucket=True)
    assert read(running.start(0, [9, 9, 9, 9])) == 36
    running.finish(0)
    assert running.start(0, [3, 4]) is None
    assert running.advance({}) == {}
    assert {row: read(logits) for row, logits in running.advance({}).items()} == {0: 7}


def test_the_last_slot_is_used_and_none_beyond_it() -> None:
    """A row takes its last cache slot; one more token is refused, with the cure."""
    running, decode = batch(4)
    running.start(0, [1, 1, 1, 1])
    for _ in range(SLOTS - 4):
        running.advance({0: 1})
    assert decode.given[-1]["positions"] == [SLOTS - 1, 0, 0]
    with pytest.raises(UsageError, match="fills all 8 cache slots") as refused:
        running.advance({0: 1})
    assert "--cache-length" in str(refused.value.hint)


def test_a_step_without_a_row_that_has_a_sequence_is_a_mistake() -> None:
    """A row cannot be left out, for the step would write into it; nor can a busy row be taken."""
    running, _ = batch(4)
    running.start(0, [1])
    running.start(1, [2])
    with pytest.raises(KeyError):
        running.advance({0: 1})
    assert {row: read(logits) for row, logits in running.advance({0: 1, 1: 1}).items()} == {0: 2, 1: 3}
    with pytest.raises(AssertionError, match="row 1 already has a sequence"):
        running.start(1, [3])


def test_the_smallest_bucket_that_fits_is_used_unless_one_is_named() -> None:
    """A prompt goes through the smallest bucket that holds it, or the only one that may be used."""
    small, large = Diary("prefill", 2), Diary("prefill", 4)
    running = Batch({2: small, 4: large}, Diary("decode", 1))
    running.start(0, [1])
    running.start(1, [1], only=4)
    assert (len(small.given), len(large.given)) == (1, 1)
    with pytest.raises(UsageError, match="5 tokens, the largest bucket holds 4"):
        running.start(2, [1, 2, 3, 4, 5])


def test_a_session_alone_runs_on_graphs_of_many_rows() -> None:
    """One sequence can be run on a batch's graphs: the first row's answer counts."""
    alone = Session({4: Diary("prefill", 4)}, Diary("decode", 1))
    assert read(alone.start({"input_ids": torch.tensor([[1, 2, 3]])})) == 6
    assert read(alone.advance(4)) == 10
