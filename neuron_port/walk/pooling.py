"""How a sentence-embedding checkpoint makes one vector of a text: read from its `modules.json`, computed in the graph.

The layout is that of sentence-transformers: numbered modules, of which `Pooling` and `Normalize` follow the encoder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from neuron_port.errors import CheckpointError

_NOTE = "neuron_port_pooling"  # the attribute of a model


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """One vector for each text: the mean of its tokens or its first token, normalised or not."""

    mode: str  # "mean" or "cls"
    normalize: bool

    def __call__(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """hidden [B, S, H], attention_mask [B, S] -> [B, H]."""
        if self.mode == "cls":
            pooled = hidden[:, 0]
        else:
            weights = attention_mask[:, :, None].to(torch.float32)
            total = (hidden.to(torch.float32) * weights).sum(1)
            pooled = (total / weights.sum(1).clamp(min=1e-9)).to(hidden.dtype)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


def pool_with(model: torch.nn.Module, pooling: Pooling | None) -> None:
    """Note on the model how its checkpoint pools; copies of the model keep the note."""
    setattr(model, _NOTE, pooling)


def pooling_of(model: torch.nn.Module) -> Pooling | None:
    """What `pool_with` noted, if anything."""
    found = getattr(model, _NOTE, None)
    assert found is None or isinstance(found, Pooling)
    return found


def read_pooling(directory: Path) -> Pooling | None:
    """The pooling that a checkpoint's folder asks for, or None.

    Raises:
        CheckpointError: it pools in a way that we do not compute.
    """
    listing = directory / "modules.json"
    if not listing.is_file():
        return None
    modules = json.loads(listing.read_text(encoding="utf-8"))
    kinds = {entry["type"].rsplit(".", 1)[-1]: entry.get("path", "") for entry in modules}
    if "Pooling" not in kinds:
        return None
    if others := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
        raise CheckpointError(
            f"{listing} has a module of the kind `{others[0]}` behind the encoder",
            hint="Pooling and Normalize are known. Without modules.json the encoder is converted alone.",
        )
    options = json.loads((directory / kinds["Pooling"] / "config.json").read_text(encoding="utf-8"))
    chosen = [name for name, value in options.items() if name.startswith("pooling_mode_") and value is True]
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(chosen) != 1 or chosen[0] not in modes:
        raise CheckpointError(
            f"{listing} pools by {', '.join(chosen) or 'nothing'}",
            hint="The mean and the first token are known.",
        )
    return Pooling(mode=modes[chosen[0]], normalize="Normalize" in kinds)
