"""A graph's program: one step of a model as a pure function with static shapes, and example inputs for it.

    forward(inputs, states) -> (*outputs, *new states)

`inputs` and `states` are tuples of tensors in the order in which the program names them; a new state takes the place
of the state of the same name. How a model's forward becomes such a step is its family's business (families/).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

from neuron_port.types import Phase


@dataclass(frozen=True, kw_only=True)
class GraphShapes:
    """The sizes for which graphs are made.

    `buckets`: tokens (of audio: samples) of each prefill or forward graph; `cache_length`: key/value slots.
    """

    batch: int
    buckets: tuple[int, ...]
    cache_length: int


@dataclass(frozen=True, kw_only=True)
class Program:
    """One graph to be: `step` is called with the values of `inputs` and `states`, whose shapes are the graph's."""

    phase: Phase
    step: torch.nn.Module
    inputs: Mapping[str, torch.Tensor]
    states: Mapping[str, torch.Tensor] = field(default_factory=dict)
    outputs: tuple[str, ...]
    batch: int
    sequence_length: int  # tokens or samples of the bucket; of a decode step: 1
    cache_length: int = 0  # key/value slots, where there are any
    fills_bucket: bool = False  # no padding: a recurrence would run on into it

    @property
    def id(self) -> str:
        return graph_id(self.phase, self.batch, self.sequence_length, self.cache_length)

    @property
    def arguments(self) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """What `step` is called with: example inputs, example states."""
        return tuple(self.inputs.values()), tuple(self.states.values())


def takes(model: torch.nn.Module, name: str) -> bool:
    """Whether the model's forward has an argument of that name."""
    return name in inspect.signature(type(model).forward).parameters


def graph_id(phase: Phase, batch: int, sequence_length: int, cache_length: int) -> str:
    """`prefill_b1_s128`, `decode_b1_t256`, `forward_b8_s512`."""
    size = f"t{cache_length}" if phase == "decode" else f"s{sequence_length}"
    return f"{phase}_b{batch}_{size}"


@dataclass(frozen=True)
class StepState:
    """What attention must know of the step in which it runs."""

    phase: Phase
    positions: torch.Tensor  # int32 [B]


_CURRENT: ContextVar[StepState] = ContextVar("neuron_port_step")


def current_step() -> StepState:
    """The step that is running; attention over a cache is only ever called inside one."""
    return _CURRENT.get()


def step_or_none() -> StepState | None:
    """The step that is running, if one is."""
    return _CURRENT.get(None)


@contextmanager
def running(state: StepState) -> Iterator[None]:
    """Let `current_step()` answer `state`."""
    token = _CURRENT.set(state)
    try:
        yield
    finally:
        _CURRENT.reset(token)
