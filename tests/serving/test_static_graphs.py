"""Which bucket a prompt takes, what a graph is given, and where a bucket is dearer than steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from neuron_port.errors import UsageError
from neuron_port.serving.backends.static_graphs import StaticEmbedder, StaticGenerator
from neuron_port.serving.bundle import EMBEDDING
from neuron_port.types import GraphInput, GraphOutput, GraphSpec, TensorSpec

INTEGERS = {"input_ids": "S", "attention_mask": "S", "positions": "B", "slot": "1"}


def graph(phase: Any, batch: int, size: int, names: str, *, recurrent: bool = False) -> GraphSpec:
    shapes = {"S": (batch, size), "B": (batch,), "1": (1,)}
    output = EMBEDDING if phase == "forward" else "logits"
    return GraphSpec(
        id=f"{phase}_{size}", phase=phase, batch=batch, sequence_length=size, cache_length=64, fills_bucket=recurrent,
        inputs=tuple(
            GraphInput(name=name, role="input", spec=TensorSpec(shape=shapes[INTEGERS[name]], dtype="int32"))
            for name in names.split()
        ),
        outputs=(GraphOutput(name=output, role="output", spec=TensorSpec(shape=(batch, 3), dtype="float32")),),
    )  # fmt: skip


class Recorder:
    """A `Runtime` that notes what it is asked; `seconds` says how long each graph takes."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.cleared: list[int | None] = []
        self._seconds = seconds or {}

    def run(self, name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls.append((name, {key: value.tolist() for key, value in inputs.items()}))
        time.sleep(self._seconds.get(name, 0.0))
        rows = inputs["input_ids"].shape[0]
        return {"logits": np.zeros((rows, 3), np.float32), EMBEDDING: np.ones((rows, 3), np.float32)}

    def clear(self, row: int | None = None) -> None:
        self.cleared.append(row)


BATCHED = (
    graph("prefill", 1, 4, "input_ids positions slot"),
    graph("prefill", 1, 8, "input_ids positions slot"),
    graph("decode", 4, 1, "input_ids positions"),
)
FAST_BUCKETS = {"decode_1": 0.02}


def made(graphs: tuple[GraphSpec, ...], seconds: Mapping[str, float]) -> tuple[StaticGenerator, Recorder]:
    runtime = Recorder(seconds)
    generator = StaticGenerator(graphs, runtime)
    runtime.calls.clear()
    runtime.cleared.clear()
    return generator, runtime


def test_the_smallest_bucket_takes_the_prompt_into_its_row() -> None:
    """Ids are padded on the right, `positions` is the last token's place, `slot` the row."""
    generator, runtime = made(BATCHED, FAST_BUCKETS)
    generator.prefill(2, [7, 8, 9])
    generator.prefill(0, [1] * 5)
    assert runtime.calls == [
        ("prefill_4", {"input_ids": [[7, 8, 9, 0]], "positions": [2], "slot": [2]}),
        ("prefill_8", {"input_ids": [[1, 1, 1, 1, 1, 0, 0, 0]], "positions": [4], "slot": [0]}),
    ]


def test_decode_gives_every_row_its_token_and_place() -> None:
    """One token and one position for each row, as they are."""
    generator, runtime = made(BATCHED, FAST_BUCKETS)
    assert generator.decode([5, 6, 7, 8], [3, 0, 9, 1]).shape == (4, 3)
    assert runtime.calls == [("decode_1", {"input_ids": [[5], [6], [7], [8]], "positions": [3, 0, 9, 1]})]


@pytest.mark.parametrize(("count", "length"), [(1, 1), (4, 4), (8, 8), (9, 8), (30, 8)])
def test_a_bucket_takes_what_it_holds(count: int, length: int) -> None:
    """A prompt beyond the largest bucket fills it, and the rest follows in steps."""
    generator, _ = made(BATCHED, FAST_BUCKETS)
    assert generator.prefill_length(count, 1) == length


@pytest.mark.parametrize(("count", "busy_rows", "length"), [(3, 4, 0), (3, 1, 3), (8, 4, 8), (4, 4, 0)])
def test_steps_take_a_prompt_where_they_cost_less(count: int, busy_rows: int, length: int) -> None:
    """With a bucket of 60 ms and steps of 40 ms, four busy rows take short prompts in their stride; one does not."""
    generator, _ = made(BATCHED, {"prefill_4": 0.06, "prefill_8": 0.06, "decode_1": 0.04})
    assert generator.prefill_length(count, busy_rows) == length


def test_a_row_of_caches_needs_no_clearing() -> None:
    """What lies behind a sequence in a cache is never looked at; only a recurrence must start from zeros."""
    generator, runtime = made(BATCHED, FAST_BUCKETS)
    generator.begin_empty(1)
    assert runtime.cleared == []


def test_a_recurrence_fills_its_bucket_from_zeros() -> None:
    """No padding runs through a recurrent state: the largest bucket that the prompt fills, or none, on a clear row."""
    graphs = (
        graph("prefill", 1, 4, "input_ids positions", recurrent=True),
        graph("decode", 1, 1, "input_ids positions"),
    )
    generator, runtime = made(graphs, FAST_BUCKETS)
    assert [generator.prefill_length(count, 1) for count in (3, 4, 7)] == [0, 4, 4]
    generator.begin_empty(0)
    generator.prefill(0, [1, 2, 3, 4])
    assert runtime.cleared == [0, 0]


def test_prefill_of_a_whole_batch_is_refused() -> None:
    """Without `slot` a prompt would overwrite every row: such a bundle is refused, and a batch of one is not."""
    graphs = (graph("prefill", 4, 4, "input_ids positions"), BATCHED[2])
    with pytest.raises(UsageError, match="all 4 rows"):
        StaticGenerator(graphs, Recorder())
    single = (graph("prefill", 1, 4, "input_ids positions"), graph("decode", 1, 1, "input_ids positions"))
    assert StaticGenerator(single, Recorder()).rows == 1


def test_texts_are_padded_behind_a_mask() -> None:
    """The smallest bucket that holds the longest text; a row in no use has one token, so that no mean is over none."""
    runtime = Recorder()
    graphs = (
        graph("forward", 3, 4, "input_ids attention_mask"),
        graph("forward", 3, 8, "input_ids attention_mask"),
    )
    assert StaticEmbedder(graphs, runtime).embed([[5, 6], [7]]).shape == (2, 3)
    assert runtime.calls == [
        ("forward_4", {"input_ids": [[5, 6, 0, 0], [7, 0, 0, 0], [0, 0, 0, 0]],
                       "attention_mask": [[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]})
    ]  # fmt: skip
