"""Prefill and single steps over functional states equal transformers' own cache, for every mixture of layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicCache

from neuron_port.errors import CheckpointError
from neuron_port.walk.cutpoints import unobserved
from neuron_port.walk.program import StepState, running
from neuron_port.walk.recurrent_cache import (
    FunctionalHybridLayer,
    FunctionalLinearLayer,
    cache_argument,
    layout_of,
    state_layout,
)

BASE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEADS: dict[str, Any] = {
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
DELTA: dict[str, Any] = {
    "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "mamba": BASE | {"state_size": 4},
    "mamba2": BASE | {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    "jamba": BASE
    | HEADS
    | EXPERTS
    | {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "mamba_d_state": 4, "use_mamba_kernels": False,
    },
    "qwen3_next": BASE
    | HEADS
    | EXPERTS
    | DELTA
    | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": BASE | HEADS | DELTA,
    "granitemoehybrid": BASE
    | HEADS
    | {
        "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["mamba", "attention"], "mamba_n_heads": 8,
        "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4, "mamba_chunk_size": 4, "shared_intermediate_size": 16,
    },
}  # fmt: skip
BATCH, PROMPT, TOTAL, SLOTS = 2, 7, 10, 12


def make_model(kind: str) -> Any:
    torch.manual_seed(5)
    config = AutoConfig.for_model(kind, **CONFIGURATIONS[kind])
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)


def own_run(model: Any, ids: torch.Tensor) -> tuple[list[torch.Tensor], Any]:
    """Logits of the prompt's last token and of each further one, and the cache, by transformers' own means."""
    cache = DynamicCache(config=model.config)
    logits = []
    for first, end in [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, TOTAL))]:
        places = torch.arange(first, end)[None].expand(BATCH, -1)
        out = model(
            input_ids=ids[:, first:end], position_ids=places, use_cache=True, **{cache_argument(model): cache}
        )
        logits.append(out.logits[:, -1])
    return logits, cache


def step(
    model: Any, layout: Any, ids: torch.Tensor, states: list[torch.Tensor], at: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One step over functional states; `at` is the place of the first token, 0 in prefill."""
    prefill = at == 0
    starts = torch.full((BATCH,), at, dtype=torch.int32)
    last = torch.full((BATCH,), ids.shape[1] - 1, dtype=torch.int32) if prefill else starts
    layers = layout.cache_layers(states, starts, prefill=prefill)
    places = torch.arange(at, at + ids.shape[1])[None].expand(BATCH, -1)
    with unobserved(model), running(StepState("prefill" if prefill else "decode", last)):
        out = model(
            input_ids=ids,
            position_ids=places,
            use_cache=True,
            **{cache_argument(model): Cache(layers=layers)},
        )
    return out.logits[:, -1], layout.updated(layers)


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_prefill_and_steps_equal_transformers_cache(kind):
    """Logits after the prompt and after each of three tokens, and the final states, are transformers' own."""
    model = make_model(kind)
    ids = torch.randint(3, BASE["vocab_size"], (BATCH, TOTAL), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, cache = own_run(model, ids)
        layout = state_layout(model)
        states = list(layout.zeros(batch=BATCH, cache_length=SLOTS, device=torch.device("cpu")).values())
        found, states = step(model, layout, ids[:, :PROMPT], states, 0)
        torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=1e-5)
        for number, at in enumerate(range(PROMPT, TOTAL), start=1):
            given = [state.clone() for state in states]
            found, new = step(model, layout, ids[:, at : at + 1], states, at)
            torch.testing.assert_close(found, expected[number], rtol=1e-4, atol=1e-5)
            assert all(torch.equal(a, b) for a, b in zip(states, given, strict=True)), (
                "a state was written in place"
            )
            states = new
    for item, state in zip(layout.tensors, states, strict=True):
        layer = cache.layers[item.layer]
        if item.role == "recurrent_state":
            torch.testing.assert_close(state, layer.recurrent_states[item.index], rtol=1e-4, atol=1e-5)
        elif item.role == "conv_state":
            torch.testing.assert_close(state, layer.conv_states[item.index], rtol=1e-4, atol=1e-5)
        elif item.role == "key_cache":
            torch.testing.assert_close(state[..., :TOTAL].transpose(2, 3), layer.keys, rtol=1e-4, atol=1e-5)


def test_layout_names_every_tensor():
    """Jamba's layers are recurrent and attending in turn; the layout says which tensors each has, and their shapes."""
    layout = state_layout(make_model("jamba"))
    assert [item.name for item in layout.tensors] == [
        "conv_state.0", "recurrent_state.0", "key_cache.1", "value_cache.1",
    ]  # fmt: skip
    assert [item.shape for item in layout.tensors] == [(64, 4), (64, 4), (2, 8, None), (2, None, 8)]
    assert layout.is_recurrent


def test_layout_of_attention_alone_is_not_recurrent(tiny_llama_folder):
    """A model without recurrent state may have its prompts padded."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    assert not state_layout(model).is_recurrent


def test_a_model_that_uses_no_cache_is_refused():
    """An empty cache after a run means that there is no state to hand from step to step."""
    with pytest.raises(CheckpointError, match="used no cache"):
        layout_of(Cache(layers=[]), "Nothing")


def test_prompt_shorter_than_the_convolution_is_padded_in_front():
    """Two tokens before a convolution of width four leave two zeros in front of them in its window."""
    layer = FunctionalLinearLayer({0: torch.ones(1, 3, 4)}, {}, prefill=True)
    seen = layer.update_conv_state(torch.full((1, 3, 2), 5.0))
    assert seen[0, 0].tolist() == [0, 0, 5, 5]
    assert layer.conv_states[0][0, 0].tolist() == [0, 0, 5, 5]


def test_decode_window_slides():
    """In decode the past stands in front of the new token, and the oldest falls out."""
    layer = FunctionalLinearLayer({0: torch.arange(4.0).expand(1, 3, 4)}, {}, prefill=False)
    seen = layer.update_conv_state(torch.full((1, 3, 1), 9.0))
    assert seen[0, 0].tolist() == [0, 1, 2, 3, 9]
    assert layer.conv_states[0][0, 0].tolist() == [1, 2, 3, 9]


def test_a_layer_may_have_both_kinds_of_state():
    """A hybrid layer writes keys at the step's slot and keeps its recurrent state, in the dtype that was given."""
    keys, values = torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 3, 4)
    layer = FunctionalHybridLayer(
        keys, values, torch.tensor([1], dtype=torch.int32), {}, {0: torch.zeros(1, 5)}, prefill=False
    )
    new_keys, _ = layer.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4))
    assert new_keys[0, 0, :, 0].tolist() == [0, 1, 0]
    layer.update_recurrent_state(torch.ones(1, 5, dtype=torch.bfloat16))
    assert layer.recurrent_states[0].dtype is torch.float32
    assert Cache(layers=[layer]).is_linear == [False]
    assert keys.abs().sum() == 0


def test_a_list_of_states_is_carried_like_a_cache():
    """RWKV takes and returns a list of tensors: prefill and steps equal its own, and what was given stays as it was."""
    torch.manual_seed(5)
    config = AutoConfig.for_model(
        "rwkv", vocab_size=96, hidden_size=32, num_hidden_layers=2, context_length=64
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    ids = torch.randint(3, 96, (BATCH, TOTAL), generator=torch.Generator().manual_seed(1))
    starts = torch.zeros(BATCH, dtype=torch.int32)
    with torch.no_grad():
        layout = state_layout(model)
        states = list(layout.zeros(batch=BATCH, cache_length=SLOTS, device=torch.device("cpu")).values())
        own_state = None
        for first, end in [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, TOTAL))]:
            own = model(input_ids=ids[:, first:end], use_cache=True, state=own_state)
            own_state = own.state
            before = [state.clone() for state in states]
            given = layout.given(model, states, starts, prefill=first == 0)
            out = model(input_ids=ids[:, first:end], use_cache=True, **given)
            assert all(torch.equal(a, b) for a, b in zip(states, before, strict=True)), (
                "a state was written in place"
            )
            states = layout.left(model, given, out)
            torch.testing.assert_close(out.logits, own.logits)
    assert layout.is_recurrent
    assert [tuple(state.shape) for state in states] == [(BATCH, 32, 2)] * 5
