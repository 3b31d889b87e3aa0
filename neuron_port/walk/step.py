"""One step of a causal language model as a pure function with static shapes: the thing that becomes a graph.

    prefill: (input_ids [B, S], positions [B], caches) -> (logits [B, V] of token `positions[b]`, caches)
    decode:  (input_ids [B, 1], positions [B], caches) -> (logits [B, V], caches)

B = batch, S = tokens of the bucket, V = vocabulary. In prefill `positions[b]` is the index of row b's last prompt
token: prompts are padded on the right, where causality makes padding harmless. In decode it is the slot that the new
token takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from neuron_port.walk.cache import functional_layers

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class StepState:
    """What attention must know of the step in which it runs."""

    phase: Phase
    positions: torch.Tensor  # int32 [B]


_CURRENT: ContextVar[StepState] = ContextVar("neuron_port_step")


def current_step() -> StepState:
    """The step that is running; attention is only ever called inside one."""
    return _CURRENT.get()


@contextmanager
def running(state: StepState) -> Iterator[None]:
    """Let `current_step()` answer `state`."""
    token = _CURRENT.set(state)
    try:
        yield
    finally:
        _CURRENT.reset(token)


class CausalStep(torch.nn.Module):
    """Wraps a transformers causal language model; `forward` is the pure step described above.

    It must run inside `intercept` (cutpoints.py): the caches are in our layout and no mask is built, so transformers'
    own attention functions would misread both.
    """

    def __init__(self, model: PreTrainedModel, phase: Phase) -> None:
        super().__init__()
        self.model = model
        self.phase: Phase = phase

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, caches: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        batch, length = input_ids.shape
        prefill = self.phase == "prefill"
        if prefill:
            position_ids = torch.arange(length, device=input_ids.device)[None].expand(batch, -1)
            starts = torch.zeros_like(positions)
        else:
            position_ids, starts = positions[:, None].long(), positions
        layers = functional_layers(caches, starts, prefill=prefill)
        with running(StepState(self.phase, positions)), self._last_token_only(positions if prefill else None):
            logits = self.model(
                input_ids=input_ids,
                position_ids=position_ids,
                past_key_values=Cache(layers=[*layers]),
                use_cache=True,
            ).logits
        updated = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        return (logits[:, -1], *updated)

    @contextmanager
    def _last_token_only(self, positions: torch.Tensor | None) -> Iterator[None]:
        """Let the language-model head see each row's last prompt token alone: S - 1 rows of its work are unused."""
        if positions is None:
            yield
            return

        def select(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden_BSH = arguments[0]
            rows = torch.arange(hidden_BSH.shape[0], device=hidden_BSH.device)
            return (hidden_BSH[rows, positions.long()][:, None], *arguments[1:])

        hook = self.model.get_output_embeddings().register_forward_pre_hook(select)
        try:
            yield
        finally:
            hook.remove()
