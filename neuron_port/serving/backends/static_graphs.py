"""Serving over graphs of fixed shapes: which bucket a prompt takes, and how a graph's inputs are filled.

Inputs are given by name, as far as a graph has them (`slot` in prefill graphs of a batch, docs/serving.md).
B = rows of the decode graph, S = tokens of a bucket, C = cache slots, V = vocabulary, H = embedding size.
"""

from __future__ import annotations

import functools
import timeit
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuron_port.errors import UsageError
from neuron_port.serving.backends import Floats, Runtime
from neuron_port.serving.bundle import EMBEDDING
from neuron_port.types import GraphSpec

_LOGITS = "logits"


class StaticGenerator:
    """A `Generator` over one prefill graph for each bucket and one decode graph.

    A prompt can go through a bucket, for which all other rows wait, or token by token through the decode steps that
    other rows need anyway. Each graph is timed once at the start, and the cheaper way taken.
    """

    def __init__(self, graphs: Sequence[GraphSpec], runtime: Runtime) -> None:
        prefills = [graph for graph in graphs if graph.phase == "prefill"]
        self._prefills = sorted(prefills, key=lambda graph: graph.sequence_length)
        self._decode = next(graph for graph in graphs if graph.phase == "decode")
        self._runtime = runtime
        self.rows = self._decode.batch
        self.context = self._decode.cache_length
        self._recurrent = self._prefills[0].fills_bucket
        for graph in self._prefills:
            _check_rows(graph, self.rows)
        self.seconds = self._measured()

    def prefill_length(self, count: int, busy_rows: int) -> int:
        """As much of a prompt as a bucket takes, or nothing where the decode steps take it for less."""
        sizes = [graph.sequence_length for graph in self._prefills]
        if not self._recurrent and count <= sizes[-1]:
            length = count
        else:  # the largest bucket that the prompt fills
            length = max((size for size in sizes if size <= count), default=0)
        if length == 0:
            return 0
        # A decode step serves all busy rows: a token's share of it is their part.
        by_steps = length * self.seconds[self._decode.id] / busy_rows
        return 0 if by_steps < self.seconds[self._bucket(length).id] else length

    def _bucket(self, length: int) -> GraphSpec:
        return next(graph for graph in self._prefills if graph.sequence_length >= length)

    def _measured(self) -> dict[str, float]:
        """Seconds of one call of each graph: the best of three, the first of which also pays for what is done once."""
        calls: dict[str, Callable[[], object]] = {
            graph.id: functools.partial(self.prefill, 0, [0] * graph.sequence_length)
            for graph in self._prefills
        }
        calls[self._decode.id] = lambda: self.decode([0] * self.rows, [0] * self.rows)
        seconds = {name: min(timeit.repeat(call, number=1, repeat=3)) for name, call in calls.items()}
        self.reset()
        return seconds

    def prefill(self, row: int, ids: Sequence[int]) -> Floats:
        """Run the smallest bucket that holds `ids`: logits [V] of the token after them."""
        graph = self._bucket(len(ids))
        if self._recurrent:
            self._runtime.clear(row)  # a recurrence goes on from the state that it finds
        ids_BS = np.zeros((graph.batch, graph.sequence_length), np.int32)
        ids_BS[:, : len(ids)] = ids
        last = np.full(graph.batch, len(ids) - 1, np.int32)
        given = {"input_ids": ids_BS, "positions": last, "slot": np.full(1, row, np.int32)}
        return self._logits(graph, given)[0]

    def begin_empty(self, row: int) -> None:
        """A recurrence starts from zeros. What a cache holds is behind the sequence, where no token looks."""
        if self._recurrent:
            self._runtime.clear(row)

    def decode(self, tokens: Sequence[int], positions: Sequence[int]) -> Floats:
        """One step of all rows: logits [B, V]."""
        ids_B1 = np.asarray(tokens, np.int32)[:, None]
        return self._logits(self._decode, {"input_ids": ids_B1, "positions": np.asarray(positions, np.int32)})

    def reset(self) -> None:
        """All states are zeros again."""
        self._runtime.clear()

    def _logits(self, graph: GraphSpec, given: Mapping[str, NDArray[Any]]) -> Floats:
        found = self._runtime.run(graph.id, _inputs(graph, given))[_LOGITS]
        return np.asarray(found, np.float32)


class StaticEmbedder:
    """An `Embedder` over one graph for each bucket; the rows of a graph's batch are texts."""

    def __init__(self, graphs: Sequence[GraphSpec], runtime: Runtime) -> None:
        self._graphs = sorted(graphs, key=lambda graph: graph.sequence_length)
        self._runtime = runtime
        self.rows = self._graphs[-1].batch
        self.context = self._graphs[-1].sequence_length

    def embed(self, batch: Sequence[Sequence[int]]) -> Floats:
        """The smallest bucket that holds the longest text: [len(batch), H]."""
        longest = max(len(ids) for ids in batch)
        graph = next(graph for graph in self._graphs if graph.sequence_length >= longest)
        ids_BS = np.zeros((graph.batch, graph.sequence_length), np.int32)
        mask_BS = np.zeros_like(ids_BS)
        mask_BS[len(batch) :, 0] = 1  # a row in no use has one token: a mean over none is no number
        for row, ids in enumerate(batch):
            ids_BS[row, : len(ids)] = ids
            mask_BS[row, : len(ids)] = 1
        given = {"input_ids": ids_BS, "attention_mask": mask_BS, "token_type_ids": np.zeros_like(ids_BS)}
        found = self._runtime.run(graph.id, _inputs(graph, given))[EMBEDDING]
        return np.asarray(found, np.float32)[: len(batch)]


def _inputs(graph: GraphSpec, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What `graph` takes of `given`, in its dtypes."""
    return {
        item.name: given[item.name].astype(item.spec.dtype, copy=False)
        for item in graph.inputs
        if item.role == "input"
    }


def _check_rows(graph: GraphSpec, rows: int) -> None:
    """Raise UsageError for a prefill graph that cannot fill one row of a larger batch."""
    if rows > 1 and "slot" not in {item.name for item in graph.inputs}:
        raise UsageError(
            f"`{graph.id}` fills all {rows} rows of the batch at once, so that requests could not come and go",
            hint="Convert the model again with this version of neuron-port: its prefill graphs take a slot.",
        )
