"""Models that hear: mel features into an encoder and decoder, and samples into an encoder."""

from __future__ import annotations

from .entry import BATCH, HEADS, HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY, Entry, Inputs, draw, token_ids

MEL_BINS, FRAMES, SAMPLES = 16, 60, 1600


def _mel_and_target() -> Inputs:
    return {"input_features": draw(BATCH, MEL_BINS, FRAMES), "decoder_input_ids": token_ids(tokens=8)}


def _samples() -> Inputs:
    return {"input_values": draw(BATCH, SAMPLES)}


ENTRIES = (
    Entry(
        name="whisper",
        family="speech",
        model_type="whisper",
        architecture="WhisperForConditionalGeneration",
        settings={
            "vocab_size": VOCABULARY,
            "num_mel_bins": MEL_BINS,
            "d_model": HIDDEN,
            "encoder_layers": LAYERS,
            "decoder_layers": LAYERS,
            "encoder_attention_heads": HEADS,
            "decoder_attention_heads": HEADS,
            "encoder_ffn_dim": INTERMEDIATE,
            "decoder_ffn_dim": INTERMEDIATE,
            "max_source_positions": FRAMES // 2,
            "max_target_positions": 64,
            "decoder_start_token_id": 3,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        inputs=_mel_and_target,
    ),
    Entry(
        name="wav2vec2",
        family="speech",
        model_type="wav2vec2",
        architecture="Wav2Vec2ForCTC",
        settings={
            "vocab_size": 32,
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": INTERMEDIATE,
            "conv_dim": (32, 32, 32),
            "conv_stride": (5, 2, 2),
            "conv_kernel": (10, 3, 3),
            "num_feat_extract_layers": 3,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
        inputs=_samples,
    ),
)
