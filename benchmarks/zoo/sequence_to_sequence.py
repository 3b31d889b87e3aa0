"""Encoder and decoder over text, joined by cross attention."""

from __future__ import annotations

from .entry import HEAD_SIZE, HEADS, HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY, Entry, Inputs, token_ids


def _source_and_target() -> Inputs:
    return {"input_ids": token_ids(), "decoder_input_ids": token_ids(tokens=8)}


T5 = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "d_kv": HEAD_SIZE,
    "d_ff": INTERMEDIATE,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INTERMEDIATE,
    "decoder_ffn_dim": INTERMEDIATE,
    "max_position_embeddings": 256,
    "decoder_start_token_id": 2,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
ENTRIES = tuple(
    Entry(
        name=name,
        family="sequence_to_sequence",
        model_type=name,
        architecture=architecture,
        settings=settings,
        inputs=_source_and_target,
    )
    for name, architecture, settings in (
        ("t5", "T5ForConditionalGeneration", T5),
        ("bart", "BartForConditionalGeneration", BART),
    )
)
