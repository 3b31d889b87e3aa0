"""Small models of several architectures with random weights, walked and matched. The walk takes under a second."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    OlmoConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from neuron_port.checkpoint import build_skeleton
from neuron_port.drafting.folder import Provenance
from neuron_port.drafting.spending.cost import Cost
from neuron_port.drafting.subjects.layers import DraftableLayer, draftable_layers
from neuron_port.grading.verdict import Verdict
from neuron_port.match.matcher import match
from neuron_port.registry import Registry
from neuron_port.types import MatchPlan
from neuron_port.walk.families import programs_of
from neuron_port.walk.program import GraphShapes
from neuron_port.walk.walker import Walk, walk

COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GEMMA = COMMON | {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 12, "sliding_window": 16}
CONFIGS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(vocab_size=320, n_embd=48, n_layer=2, n_head=4, n_positions=128),
    "gemma2": Gemma2Config(**GEMMA),
    "gemma3": Gemma3TextConfig(**GEMMA),
    "olmo": OlmoConfig(**COMMON, intermediate_size=96),
    "opt": OPTConfig(**COMMON, ffn_dim=96, word_embed_proj_dim=48),
    "phi": PhiConfig(**COMMON, intermediate_size=96),
}


# Few, so that these models have layers left that people draft kernels for.
SERVED = ("gated_mlp", "residual_add")


@functools.cache
def few_recipes() -> Registry:
    """Some of the recipes of this checkout."""
    every = Registry()
    return Registry.of(*(every[name] for name in SERVED))


def few_recipes_and(folder: Path) -> Registry:
    """Some of the recipes of this checkout, and the drafts of a folder."""
    return Registry.of(*few_recipes().values(), *Registry(folder).values())


@dataclass(frozen=True)
class Tiny:
    model: PreTrainedModel
    walks: list[Walk]
    plan: MatchPlan


def walked(name: str, registry: Registry, dtype: torch.dtype = torch.float32) -> Tiny:
    """The model's prefill (16 tokens) and decode walks, and what the matcher decides with these recipes."""
    model = build_skeleton(CONFIGS[name], dtype)
    shapes = GraphShapes(batch=1, buckets=(16,), cache_length=32)
    walks = [walk(model, name, program) for program in programs_of(model, shapes)]
    parameters = [parameter for parameter, _ in model.named_parameters()]
    plan = match(walks, registry, target="trn2", generation="gen3", parameters=parameters)
    return Tiny(model, walks, plan)


@functools.cache
def drafted(name: str, layers: tuple[str, ...] | None = None) -> dict[str, DraftableLayer]:
    """What a few recipes of this checkout leave to draft, by the name of the first layer."""
    tiny = walked(name, few_recipes())
    found = draftable_layers(tiny.walks, tiny.plan, model=name, taken=list(Registry()), names=layers)
    by_layer: dict[str, DraftableLayer] = {}
    for item in found:  # attention has two tasks under one name: prefill's is first
        by_layer.setdefault(item.layers[0], item)
    return by_layer


def provenance(**changes: Any) -> Provenance:
    """Of a kernel that was admitted."""
    values: dict[str, Any] = {
        "model": "scripted",
        "date": "2026-09-01",
        "cost": Cost(usd=0.25, input_tokens=1000, output_tokens=200, calls=3),
        "verdict": Verdict(passed=True, stage="admitted", hidden_seed=7),
        "oracle_key": "0123456789abcdef",
        "target": "trn2",
    }
    return Provenance(**(values | changes))
