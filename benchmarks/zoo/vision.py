"""Models that see: transformers over patches, images beside text, and convolutional networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .entry import HEADS, HIDDEN, IMAGE, INTERMEDIATE, LAYERS, VOCABULARY, Entry, Inputs, pixels, prompt

CAPTION = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TWO_TOWERS = {"text_config": CAPTION, "vision_config": dict(IMAGE)}


def _image_and_caption() -> Inputs:
    return prompt() | pixels()


def _vision(
    name: str, architecture: str, settings: dict[str, Any], inputs: Callable[[], Inputs] = pixels
) -> Entry:
    return Entry(
        name=name,
        family="vision",
        model_type=name,
        architecture=architecture,
        settings=settings,
        inputs=inputs,
    )


ENTRIES = (
    _vision("vit", "ViTForImageClassification", dict(IMAGE)),
    _vision(
        "dinov2",
        "Dinov2Model",
        {key: value for key, value in IMAGE.items() if key != "intermediate_size"} | {"mlp_ratio": 2},
    ),
    _vision("clip", "CLIPModel", TWO_TOWERS, _image_and_caption),
    _vision("siglip", "SiglipModel", TWO_TOWERS, _image_and_caption),
    _vision("convnext", "ConvNextModel", {"depths": [1, 1], "hidden_sizes": [16, 32], "num_stages": 2}),
    _vision(
        "resnet",
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "bottleneck"},
    ),
)
