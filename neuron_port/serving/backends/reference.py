"""transformers' own model behind the same engine: what the other backends are compared with. Slow, one row at a time.

V = vocabulary, H = embedding size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuron_port.checkpoint import load_model
from neuron_port.serving.backends import Floats
from neuron_port.serving.bundle import Bundle
from neuron_port.types import Checkpoint
from neuron_port.walk.pooling import read_pooling


class ReferenceGenerator:
    """A `Generator` over transformers' model, with one of its caches for each row."""

    def __init__(self, bundle: Bundle) -> None:
        decode = next(graph for graph in bundle.graphs if graph.phase == "decode")
        self.rows, self.context = decode.batch, decode.cache_length
        self._model = _model(bundle)
        self._caches: list[Any] = [None] * self.rows

    def prefill_length(self, count: int, busy_rows: int) -> int:
        """All of it: nothing here has a fixed shape."""
        return count

    def prefill(self, row: int, ids: Sequence[int]) -> Floats:
        """Logits [V] of what follows `ids`."""
        self._caches[row] = None
        return self._step(row, ids)

    def begin_empty(self, row: int) -> None:
        self._caches[row] = None

    def decode(self, tokens: Sequence[int], positions: Sequence[int]) -> Floats:
        """Logits [B, V]; a row without a sequence is not computed, and has zeros."""
        rows = [
            self._step(row, [token]) if position > 0 else None
            for row, (token, position) in enumerate(zip(tokens, positions, strict=True))
        ]
        size = next(logits_V.size for logits_V in rows if logits_V is not None)
        return np.stack([np.zeros(size, np.float32) if logits_V is None else logits_V for logits_V in rows])

    def reset(self) -> None:
        self._caches = [None] * self.rows

    def _step(self, row: int, ids: Sequence[int]) -> Floats:
        import torch

        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([list(ids)]), past_key_values=self._caches[row], use_cache=True
            )
        self._caches[row] = output.past_key_values
        logits: Floats = output.logits[0, -1].float().numpy()
        return logits


class ReferenceEmbedder:
    """An `Embedder` over transformers' model and the checkpoint's own way of pooling."""

    def __init__(self, bundle: Bundle) -> None:
        self.rows = 1
        self.context = max(graph.sequence_length for graph in bundle.graphs)
        self._model = _model(bundle)
        self._pooling = read_pooling(bundle.folder)

    def embed(self, batch: Sequence[Sequence[int]]) -> Floats:
        """[len(batch), H], each text alone and without padding."""
        import torch

        assert self._pooling is not None, "an encoder without modules.json has no sentence_embedding"
        vectors = []
        for ids in batch:
            given = torch.tensor([list(ids)])
            with torch.inference_mode():
                hidden = self._model(input_ids=given).last_hidden_state
                vectors.append(self._pooling(hidden, torch.ones_like(given))[0].float().numpy())
        return np.stack(vectors)


def _model(bundle: Bundle) -> Any:
    """The model of the bundle's own files, which transformers wants in one folder."""
    import torch

    entry = bundle.manifest["model"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for path in (*bundle.folder.glob("*.json"), *bundle.weight_files()):
            if path.name != "derived.safetensors":
                (folder / path.name).symlink_to(path.resolve())
        checkpoint = Checkpoint(
            name=entry["id"], source=entry["source"], revision=entry["revision"], directory=str(folder),
            architecture=entry["architecture"], config=bundle.json_file("config.json"), weights={},
            random_weights=False,
        )  # fmt: skip
        return load_model(checkpoint, getattr(torch, entry["dtype"]))
