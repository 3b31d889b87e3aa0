"""Causal language models: one prefill graph for each bucket, and one that decodes a token.

    prefill: (input_ids [1, S], positions [1]), states -> logits [1, V] of token `positions[0]`, states
    prefill: (input_ids [1, S], positions [1], slot [1]), states -> the same, where B > 1
    decode:  (input_ids [B, 1], positions [B]), states -> logits [B, V], states

B = batch, S = tokens of the bucket, V = vocabulary, C = cache slots. In prefill `positions[0]` is the index of the
last prompt token: prompts are padded on the right, where causality makes padding harmless; those of a model with
recurrent states must fill their bucket. In decode `positions[b]` is the slot that row b's new token takes.

States are always those of the whole batch. A prompt comes alone and takes row `slot` of them, whatever another prompt
has left there; the other rows stay as they are, so that prompts come and go while other rows are in the middle of
theirs. A decode step writes every row at its position: a row that is idle can be given any token at position 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from neuron_port.errors import CheckpointError
from neuron_port.types import Phase
from neuron_port.walk.cache import row_write
from neuron_port.walk.program import GraphShapes, Program, StepState, running, takes
from neuron_port.walk.recurrent_cache import ListLayout, StateLayout, state_layout


class CausalStep(torch.nn.Module):
    """Wraps a transformers causal language model; `forward` is the pure step described above.

    It must run inside `intercept` (cutpoints.py): the caches are in our layout and masks say what they mean, so
    transformers' own attention functions would misread both.
    """

    def __init__(self, model: PreTrainedModel, phase: Phase, layout: StateLayout, slots: int) -> None:
        super().__init__()
        self.model = model
        self.phase: Phase = phase
        self.layout = layout
        self.slots = slots  # of the key/value caches; 0: there are none

    def forward(
        self, inputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        input_ids, positions, *slot = inputs
        if not slot:
            return self.run(input_ids, positions, states, {})
        rows = self.layout.zeros(batch=1, cache_length=input_ids.shape[1], device=input_ids.device)
        logits, *left = self.run(input_ids, positions, tuple(rows.values()), {})
        written = (row_write(state, row, slot[0]) for state, row in zip(states, left, strict=True))
        return (logits, *written)

    def run(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        states: Sequence[torch.Tensor],
        further: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """The step with what else the model is to be given (pictures, places on several axes), by its names for it."""
        batch, length = input_ids.shape
        prefill = self.phase == "prefill"
        if prefill:
            position_ids = torch.arange(length, device=input_ids.device)[None].expand(batch, -1)
            starts = torch.zeros_like(positions)
        else:
            position_ids, starts = positions[:, None].long(), positions
        given = self.layout.given(self.model, states, starts, prefill=prefill)
        with running(StepState(self.phase, positions)), self._last_token_only(positions if prefill else None):
            output = self.model(
                input_ids=input_ids,
                use_cache=True,
                **given,
                **{**self._places(position_ids), **further},
            )
        return (output.logits[:, -1], *self.layout.left(self.model, given, output))

    def _places(self, position_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """How the model learns where its tokens stand: by position ids, or by a mask over all slots (alibi)."""
        if takes(self.model, "position_ids"):
            return {"position_ids": position_ids}
        if self.phase == "decode" and self.slots:
            shape = (position_ids.shape[0], self.slots)
            return {"attention_mask": torch.ones(shape, dtype=torch.int32, device=position_ids.device)}
        return {}

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


def programs(model: PreTrainedModel, shapes: GraphShapes) -> list[Program]:
    """One prefill for each bucket, then decode; examples are zeros on the model's device.

    With more than one row, prefill takes one prompt and the row that it is for.

    Raises:
        CheckpointError: more than one row of a model that keeps a list of states (RWKV). For a step of one token its
            code in transformers adds [B, 1, H] to [B, H], which mixes the rows.
    """
    device = next(model.parameters()).device
    layout = state_layout(model)
    if shapes.batch > 1 and isinstance(layout, ListLayout):
        raise CheckpointError(
            f"{type(model).__name__} cannot decode a batch of {shapes.batch}: "
            "its own code mixes the rows of a batch when each has one new token",
            hint="Use --batch 1.",
        )
    slots = shapes.cache_length if any(item.role == "key_cache" for item in layout.tensors) else 0
    caches = layout.zeros(batch=shapes.batch, cache_length=shapes.cache_length, device=device)

    def program(phase: Phase, length: int) -> Program:
        prefill = phase == "prefill"
        rows = 1 if prefill else shapes.batch
        inputs = {
            "input_ids": torch.zeros((rows, length), dtype=torch.int32, device=device),
            "positions": torch.full((rows,), length - 1 if prefill else 0, dtype=torch.int32, device=device),
        }
        if prefill and shapes.batch > 1:
            inputs["slot"] = torch.zeros((1,), dtype=torch.int32, device=device)
        return Program(
            phase=phase,
            step=CausalStep(model, phase, layout, slots),
            inputs=inputs,
            states=caches,
            outputs=("logits",),
            batch=rows,
            sequence_length=length,
            cache_length=shapes.cache_length,
            fills_bucket=layout.is_recurrent,
        )

    return [*(program("prefill", size) for size in shapes.buckets), program("decode", 1)]


def run_sample(
    model: PreTrainedModel,
    sample: Mapping[str, torch.Tensor],
    *,
    cache_length: int,
    begin: Callable[[Phase], None],
) -> None:
    """A prompt, `input_ids` int64 [1, S], and one further token."""
    ids = sample["input_ids"]
    length = ids.shape[1]
    shapes = GraphShapes(batch=1, buckets=(length,), cache_length=cache_length)
    prefill, decode = programs(model, shapes)
    begin("prefill")
    logits, *states = prefill.step((ids, torch.tensor([length - 1], dtype=torch.int32)), prefill.arguments[1])
    begin("decode")
    decode.step((logits.argmax(-1, keepdim=True), torch.tensor([length], dtype=torch.int32)), tuple(states))
