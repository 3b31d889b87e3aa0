"""Text encoders: attention in both directions, with a padding mask."""

from __future__ import annotations

from typing import Any

from .entry import HEADS, HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY, Entry, sentence, text_settings


def _encoder(name: str, architecture: str, settings: dict[str, Any], model_type: str | None = None) -> Entry:
    return Entry(
        name=name,
        family="encoder",
        model_type=model_type or name,
        architecture=architecture,
        settings=settings,
        inputs=sentence,
    )


ENTRIES = (
    _encoder("bert", "BertForMaskedLM", text_settings("num_key_value_heads")),
    _encoder("roberta", "RobertaForMaskedLM", text_settings("num_key_value_heads")),
    _encoder("xlm_roberta", "XLMRobertaModel", text_settings("num_key_value_heads"), "xlm-roberta"),
    _encoder(
        "distilbert",
        "DistilBertModel",
        {
            "vocab_size": VOCABULARY,
            "dim": HIDDEN,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_dim": INTERMEDIATE,
            "max_position_embeddings": 256,
        },
    ),
    _encoder(
        "deberta_v2",
        "DebertaV2Model",
        text_settings(
            "num_key_value_heads",
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            type_vocab_size=0,
        ),
        "deberta-v2",
    ),
    _encoder(
        "modernbert",
        "ModernBertForMaskedLM",
        text_settings(
            "num_key_value_heads",
            layer_types=["full_attention", "sliding_attention"],
            local_attention=8,
            cls_token_id=1,
            sep_token_id=2,
        ),
    ),
)
