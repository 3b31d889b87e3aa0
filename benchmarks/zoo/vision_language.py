"""Decoders that read images: an image's embeddings take the place of its tokens.

The Qwen models take images as rows of patches; how many rows and columns is data (`image_grid_thw`) on which
the shapes of their graphs depend.
"""

from __future__ import annotations

from typing import Any

import torch

from .entry import (
    BATCH,
    HEAD_SIZE,
    HEADS,
    HIDDEN,
    IMAGE,
    IMAGE_TOKEN,
    INTERMEDIATE,
    LAYERS,
    Entry,
    Inputs,
    draw,
    text_settings,
    token_ids,
)

PATCHES_A_SIDE, PATCH_SIZE, MERGE_SIZE, FRAMES_A_PATCH = 8, 4, 2, 2
VISION_START, VISION_END, VIDEO_TOKEN = 7, 8, 6
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
PATCHES: dict[str, Any] = {
    "depth": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_heads": HEADS,
    "patch_size": PATCH_SIZE,
    "spatial_merge_size": MERGE_SIZE,
    "temporal_patch_size": FRAMES_A_PATCH,
    "out_hidden_size": HIDDEN,
}
QWEN_TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


def _image_first(batch: int, image_tokens: int, text_tokens: int) -> torch.Tensor:
    """[B, image + text] ids."""
    image = torch.full((batch, image_tokens), IMAGE_TOKEN)
    return torch.cat([image, token_ids(batch, text_tokens)], dim=1)


def _llava() -> Inputs:
    ids = _image_first(BATCH, 16, 16)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": draw(BATCH, 3, 32, 32)}


def _gemma3() -> Inputs:
    ids = _image_first(BATCH, 4, 12)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": draw(BATCH, 3, 32, 32),
        "token_type_ids": (ids == IMAGE_TOKEN).to(torch.int64),
    }


def _qwen() -> Inputs:
    patches = PATCHES_A_SIDE**2
    start, end = torch.tensor([[VISION_START]]), torch.tensor([[VISION_END]])
    image = torch.full((1, patches // MERGE_SIZE**2), IMAGE_TOKEN)
    ids = torch.cat([start, image, end, token_ids(1, 16)], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": draw(patches, 3 * FRAMES_A_PATCH * PATCH_SIZE**2),
        "image_grid_thw": torch.tensor([[1, PATCHES_A_SIDE, PATCHES_A_SIDE]]),
        "mm_token_type_ids": (ids == IMAGE_TOKEN).to(torch.int32),
    }


ENTRIES = (
    Entry(
        name="llava",
        family="vision_language",
        model_type="llava",
        architecture="LlavaForConditionalGeneration",
        settings={
            "vision_config": {"model_type": "clip_vision_model", "projection_dim": HIDDEN, **IMAGE},
            "text_config": {"model_type": "llama", **text_settings()},
            "image_token_index": IMAGE_TOKEN,
            "image_token_id": IMAGE_TOKEN,
            "vision_feature_layer": -1,
        },
        inputs=_llava,
    ),
    Entry(
        name="qwen2_5_vl",
        family="vision_language",
        model_type="qwen2_5_vl",
        architecture="Qwen2_5_VLForConditionalGeneration",
        settings={
            "text_config": text_settings(rope_parameters=SECTIONS),
            "vision_config": {**PATCHES, "window_size": 16, "fullatt_block_indexes": [1]},
            **QWEN_TOKENS,
        },
        inputs=_qwen,
        constants=("image_grid_thw",),
    ),
    Entry(
        name="qwen3_vl",
        family="vision_language",
        model_type="qwen3_vl",
        architecture="Qwen3VLForConditionalGeneration",
        settings={
            "text_config": text_settings(head_dim=HEAD_SIZE, rope_parameters=SECTIONS),
            "vision_config": {**PATCHES, "deepstack_visual_indexes": [0], "num_position_embeddings": 64},
            **QWEN_TOKENS,
        },
        inputs=_qwen,
        constants=("image_grid_thw",),
    ),
    Entry(
        name="gemma3",
        family="vision_language",
        model_type="gemma3",
        architecture="Gemma3ForConditionalGeneration",
        settings={
            "text_config": text_settings(
                head_dim=HEAD_SIZE,
                sliding_window=8,
                query_pre_attn_scalar=16,
                layer_types=["sliding_attention", "full_attention"],
            ),
            "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **IMAGE},
            "mm_tokens_per_image": 4,
            "image_token_index": IMAGE_TOKEN,
            "image_token_id": IMAGE_TOKEN,
            "boi_token_index": VISION_START,
            "eoi_token_index": VISION_END,
        },
        inputs=_gemma3,
    ),
)
