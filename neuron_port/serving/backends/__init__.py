"""What computes logits and embeddings: XLA-CPU, NeuronCores, or transformers itself, behind two small protocols.

    Generator   a batch of rows, each with a sequence of its own         static_graphs.py, reference.py
    Embedder    texts in, vectors out                                    static_graphs.py, reference.py
    Runtime     executes a bundle's graphs, states staying where they are  xla_cpu.py, neuron.py

One thread calls a backend, the engine's. B = rows, V = vocabulary, H = embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from neuron_port.serving.bundle import Bundle

BackendName = Literal["xla-cpu", "neuron", "reference"]
BACKENDS: tuple[BackendName, ...] = ("xla-cpu", "neuron", "reference")
Floats = NDArray[np.float32]


class Generator(Protocol):
    """Rows that each hold one sequence. After any exception `reset` must be called, and every row is empty."""

    rows: int
    context: int  # tokens that a row holds, prompt and completion together

    def prefill_length(self, count: int, busy_rows: int) -> int:
        """How many tokens of a prompt of `count` to give to `prefill`; the others follow by `decode`. May be 0.

        `busy_rows` are the rows that decode steps are for, this one included: a step costs the same for all of them.
        """
        ...

    def prefill(self, row: int, ids: Sequence[int]) -> Floats:
        """Begin a sequence in `row` with `ids` (as many as `prefill_length` said): logits [V] of what follows."""
        ...

    def begin_empty(self, row: int) -> None:
        """Begin a sequence of no tokens in `row`."""
        ...

    def decode(self, tokens: Sequence[int], positions: Sequence[int]) -> Floats:
        """Append one token to every row, at its position: logits [B, V]. Rows in no use take anything, at 0."""
        ...

    def reset(self) -> None:
        """Forget all sequences."""
        ...


class Embedder(Protocol):
    """Turns texts into vectors, up to `rows` of them at once."""

    rows: int
    context: int  # tokens of the longest text

    def embed(self, batch: Sequence[Sequence[int]]) -> Floats:
        """One vector for each text's ids: [len(batch), H]."""
        ...


class Runtime(Protocol):
    """Executes a bundle's graphs. States are kept between calls, shared by all graphs under their names."""

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """The graph's outputs (not its states) by name, for its inputs (not its weights and states) by name."""
        ...

    def clear(self, row: int | None = None) -> None:
        """Zero the states, all of them or one row's."""
        ...


def load_generator(bundle: Bundle, backend: BackendName) -> Generator:
    """The backend of that name with the bundle's generation graphs loaded: takes seconds to minutes."""
    if backend == "reference":
        from neuron_port.serving.backends.reference import ReferenceGenerator

        return ReferenceGenerator(bundle)
    from neuron_port.serving.backends.static_graphs import StaticGenerator

    return StaticGenerator(bundle.graphs, _runtime(bundle, backend))


def load_embedder(bundle: Bundle, backend: BackendName) -> Embedder:
    """The backend of that name with the bundle's encoder graphs loaded."""
    if backend == "reference":
        from neuron_port.serving.backends.reference import ReferenceEmbedder

        return ReferenceEmbedder(bundle)
    from neuron_port.serving.backends.static_graphs import StaticEmbedder

    return StaticEmbedder(bundle.graphs, _runtime(bundle, backend))


def _runtime(bundle: Bundle, backend: BackendName) -> Runtime:
    if backend == "neuron":
        from neuron_port.serving.backends.neuron import NeuronRuntime

        return NeuronRuntime(bundle)
    from neuron_port.serving.backends.xla_cpu import XlaRuntime

    return XlaRuntime(bundle)
