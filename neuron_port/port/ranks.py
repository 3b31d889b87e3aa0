"""Several tensor-parallel ranks of one graph as one step: states go in whole and come out whole.

What calls a step need not know how many ranks it has. Every rank is given the same inputs and its own part of the
states. In this process the ranks are threads of which one runs at a time: they change at the collectives, where all
of them wait for each other, so nothing that they share is touched by two at once.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from neuron_port.errors import ParityError
from neuron_port.port.run import GraphRunner
from neuron_port.types import GraphInput, GraphSpec, Shard
from neuron_port.walk.collectives import exchanging
from neuron_port.walk.sharding import joined, part_of

Tensors = list[torch.Tensor]
# (inputs of all ranks, each rank's states) -> each rank's (outputs, new states)
RunRanks = Callable[[Sequence[torch.Tensor], list[Tensors]], list[tuple[Tensors, Tensors]]]


class RankedStep:
    """A graph that several ranks run, called like a step of one: `spec` has the whole model's states."""

    def __init__(self, spec: GraphSpec, ranks: int, run: RunRanks) -> None:
        self.spec = whole_spec(spec)
        self.ranks = ranks
        self._run = run
        self._shards = [item.shard for item in spec.inputs if item.role == "state"]

    def __call__(
        self, inputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Inputs and whole states -> (outputs, new whole states).

        Raises: ParityError when ranks that must hold the same do not.
        """
        parts = [
            [part_of(state, shard, rank) for state, shard in zip(states, self._shards, strict=True)]
            for rank in range(self.ranks)
        ]
        results = self._run(inputs, parts)
        names = [item.name for item in self.spec.outputs]
        outputs = [
            self._agreed(name, [outputs[number] for outputs, _ in results], None)
            for number, name in enumerate(names[: len(results[0][0])])
        ]
        whole = [
            self._agreed(name, [new[number] for _, new in results], shard)
            for number, (name, shard) in enumerate(zip(names[len(outputs) :], self._shards, strict=True))
        ]
        return outputs, whole

    def _agreed(self, name: str, parts: Tensors, shard: Shard | None) -> torch.Tensor:
        """All parts as one, once those that must be equal are."""
        for rank, part in enumerate(parts):
            first = 0 if shard is None else rank - rank % shard.copies
            if not torch.equal(part, parts[first]):
                raise ParityError(
                    f"Ranks {first} and {rank} of graph `{self.spec.id}` disagree on `{name}`, which both hold",
                    hint="A sum over ranks is missing before it, or a weight is cut that must be whole.",
                )
        return joined(parts, shard)


def whole_spec(spec: GraphSpec) -> GraphSpec:
    """The interface of all ranks together: states in the sizes of the whole model."""
    wholes = {item.name: _whole(item) for item in spec.inputs if item.role == "state"}
    return replace(
        spec,
        inputs=tuple(wholes.get(item.name, item) for item in spec.inputs),
        outputs=tuple(
            item if item.alias_of is None else replace(item, spec=wholes[item.alias_of].spec)
            for item in spec.outputs
        ),
    )


def _whole(state: GraphInput) -> GraphInput:
    if state.shard is None or state.shard.axis is None:
        return state
    shape = list(state.spec.shape)
    shape[state.shard.axis] *= state.shard.ranks // state.shard.copies
    return replace(state, spec=replace(state.spec, shape=tuple(shape)), shard=None)


class Lockstep:
    """Runs a function for every rank in a thread of its own, one at a time, changing at collectives."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._turn = threading.Lock()  # who holds it runs
        self._meeting = threading.Barrier(ranks)
        self._brought: list[torch.Tensor | None] = [None] * ranks

    def run(self, work: Callable[[int], tuple[Tensors, Tensors]]) -> list[tuple[Tensors, Tensors]]:
        """The results of `work(rank)`, by rank; the first rank's own failure is raised again."""
        results: list[tuple[Tensors, Tensors] | None] = [None] * self.ranks
        failures: list[BaseException] = []

        def alone(rank: int) -> None:
            with self._turn, exchanging(lambda tensor: self._exchange(rank, tensor)):
                try:
                    results[rank] = work(rank)
                except threading.BrokenBarrierError:
                    pass  # another rank failed, and says why
                except BaseException as error:
                    failures.append(error)
                    self._meeting.abort()

        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(alone, rank), name=f"rank {rank}")
            for rank in range(self.ranks)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return [result for result in results if result is not None]

    def _exchange(self, rank: int, tensor: torch.Tensor) -> list[torch.Tensor]:
        self._brought[rank] = tensor
        self._meet()
        parts = [part for part in self._brought if part is not None]
        self._meet()  # nobody brings the next one before all have taken these
        return parts

    def _meet(self) -> None:
        self._turn.release()
        try:
            self._meeting.wait()
        finally:
            self._turn.acquire()


def interpreted(runners: Sequence[GraphRunner]) -> RankedStep:
    """The step of all ranks' runners of one graph, interpreted in this process."""

    def run(inputs: Sequence[torch.Tensor], states: list[Tensors]) -> list[tuple[Tensors, Tensors]]:
        return Lockstep(len(runners)).run(lambda rank: runners[rank](inputs, states[rank]))

    return RankedStep(runners[0].spec, len(runners), run)
