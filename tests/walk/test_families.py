"""Families of models, told by what a class can do, and their steps against transformers' own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq
from transformers.models.auto.configuration_auto import AutoConfig

from neuron_port.errors import CheckpointError
from neuron_port.walk.cutpoints import unobserved
from neuron_port.walk.families import family_of, programs_of
from neuron_port.walk.families.encoder import example_inputs, wanted_inputs
from neuron_port.walk.program import GraphShapes

TOKENS: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT: dict[str, Any] = TOKENS | {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 32,
}  # fmt: skip
DECODERS: dict[str, Any] = TOKENS | {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 2,
}  # fmt: skip
CONFIGURATIONS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "llama": (AutoModelForCausalLM, "llama", TEXT),
    "bert": (AutoModel, "bert", TEXT),
    "one type": (AutoModel, "bert", TEXT | {"type_vocab_size": 1}),
    "vit": (
        AutoModel,
        "vit",
        {key: TEXT[key] for key in TEXT if key not in TOKENS} | {"image_size": 16, "patch_size": 8},
    ),
    "t5": (
        AutoModelForSeq2SeqLM,
        "t5",
        TOKENS
        | {
            "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 4,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": (AutoModelForSeq2SeqLM, "bart", DECODERS | {"max_position_embeddings": 32}),
    "whisper": (
        AutoModelForSpeechSeq2Seq,
        "whisper",
        DECODERS | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
    ),
}  # fmt: skip
SHAPES = GraphShapes(batch=1, buckets=(8,), cache_length=12)


def make(name: str) -> Any:
    torch.manual_seed(4)
    auto, kind, changes = CONFIGURATIONS[name]
    config = AutoConfig.for_model(kind, **changes)
    return auto.from_config(config, dtype=torch.float32).eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("llama", "causal"), ("bert", "encoder"), ("vit", "encoder"), ("t5", "sequence to sequence"),
        ("whisper", "sequence to sequence"),
    ],
)  # fmt: skip
def test_a_family_is_told_by_what_the_class_can_do(name: str, family: str) -> None:
    """Whether it generates, and whether it encodes before."""
    assert family_of(make(name)) == family


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("bert", {"input_ids": (2, 8), "attention_mask": (2, 8), "token_type_ids": (2, 8)}),
        ("one type", {"input_ids": (2, 8), "attention_mask": (2, 8)}),
        ("vit", {"pixel_values": (2, 3, 16, 16)}),
        ("whisper", {"input_features": (2, 8, 32)}),
    ],
)
def test_inputs_are_read_off_signature_and_configuration(name: str, inputs: dict[str, Any]) -> None:
    """Texts bring their mask, and token types where there are two; pictures and spectrograms have one size."""
    model = make(name)
    assert wanted_inputs(model) == list(inputs)
    made = example_inputs(model, batch=2, length=8)
    assert {key: tuple(tensor.shape) for key, tensor in made.items()} == inputs
    assert all(tensor.dtype in (torch.int32, torch.float32) for tensor in made.values())


def test_a_model_whose_inputs_have_one_size_has_one_graph() -> None:
    """Buckets are for texts and sounds: a picture encoder has one graph whatever they are."""
    shapes = GraphShapes(batch=1, buckets=(8, 16), cache_length=12)
    assert [program.id for program in programs_of(make("vit"), shapes)] == ["forward_b1_s16"]
    assert [program.id for program in programs_of(make("bert"), shapes)] == [
        "forward_b1_s8",
        "forward_b1_s16",
    ]


def test_a_bucket_beyond_the_positions_is_refused() -> None:
    """What the model's own code makes of too long a text is one sentence with the cure."""
    with pytest.raises(CheckpointError, match="does not run on inputs of 40") as raised:
        programs_of(make("bert"), GraphShapes(batch=1, buckets=(40,), cache_length=12))
    assert "--buckets" in str(raised.value.hint)


def drawn(inputs: Any) -> dict[str, torch.Tensor]:
    """Random values in the shapes of a program's inputs; the mask hides the last two tokens."""
    generator = torch.Generator().manual_seed(6)
    made = {}
    for name, tensor in inputs.items():
        if name == "attention_mask":
            made[name] = torch.ones_like(tensor)
            made[name][:, -2:] = 0
        elif tensor.is_floating_point():
            made[name] = torch.randn(tensor.shape, generator=generator)
        else:
            made[name] = torch.randint(3, 64, tensor.shape, generator=generator, dtype=tensor.dtype)
    return made


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_steps_of_an_encoder_and_decoder_equal_its_own_forward(name: str) -> None:
    """Logits after the first token and after each of three more are those of the whole sequence at once."""
    model = make(name)
    prefill, decode = programs_of(model, SHAPES)
    given = drawn(prefill.inputs)
    tokens = given["decoder_input_ids"].long()
    states = tuple(prefill.states.values())
    with torch.no_grad():
        for number in range(4):
            own = {**given, "decoder_input_ids": tokens}
            expected = model(**own, use_cache=False).logits[:, -1]
            last = {**given, "decoder_input_ids": tokens[:, -1:].int()}
            last["positions"] = torch.full((1,), number, dtype=torch.int32)
            program = prefill if number == 0 else decode
            with unobserved(model):
                logits, *new = program.step(tuple(last[key] for key in program.inputs), states)
            states = tuple(new)
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
            assert {key: state.shape for key, state in zip(prefill.states, states, strict=True)} == {
                key: state.shape for key, state in prefill.states.items()
            }
            tokens = torch.cat([tokens, expected.argmax(-1, keepdim=True)], 1)


def test_the_cross_caches_are_read_and_not_rebuilt() -> None:
    """A decode step over cross caches of zeros gives something else: nothing else tells it what was encoded."""
    model = make("t5")
    prefill, decode = programs_of(model, SHAPES)
    given = drawn(prefill.inputs)
    with torch.no_grad(), unobserved(model):
        _, *states = prefill.step(tuple(given[key] for key in prefill.inputs), tuple(prefill.states.values()))
        given["positions"] = torch.ones(1, dtype=torch.int32)
        inputs = tuple(given[key] for key in decode.inputs)
        right, *_ = decode.step(inputs, tuple(states))
        emptied = [
            torch.zeros_like(state) if key.startswith("cross") else state
            for key, state in zip(prefill.states, states, strict=True)
        ]
        wrong, *_ = decode.step(inputs, tuple(emptied))
    assert (right - wrong).abs().max() > 1e-3
