"""From a configuration to what the model is made of: parameters by kind, what one token uses, what a step streams."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from neuron_port.preflight.blocks import Trimmed, kinds_of
from neuron_port.preflight.records import Anatomy
from neuron_port.types import DTYPE_BYTES
from neuron_port.walk.families import family_of

Part = Literal["embedding", "attention", "mlp", "experts", "other"]

# What transformers calls the modules; a parameter is of the first part whose pattern its name has.
PARTS: tuple[tuple[Part, re.Pattern[str]], ...] = (
    ("other", re.compile(r"norm|\bln_", re.IGNORECASE)),
    ("embedding", re.compile(r"embed|wte|wpe|wpt|lm_head|\bhead\b|embeddings?\.|output_projection")),
    ("experts", re.compile(r"\.experts?\.|\.experts_")),
    ("attention", re.compile(r"attn|attention|\bq_proj|\bk_proj|\bv_proj|mixer|ssm|mamba|recurrent|time_mix|rg_lru")),
    ("mlp", re.compile(r"mlp|ffn|feed_forward|feedforward|\bfc\d|intermediate|output\.dense|channel_mix|shared_expert")),
)  # fmt: skip
EXPERT_COUNTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts")
SCALE_BYTES = 4  # int8 and fp8 weights have one float32 scale for each row


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Which parameters are looked up rather than multiplied with, and which is the head (both, where they are tied)."""

    looked_up: frozenset[str]
    head: str | None


def tables_of(model: PreTrainedModel) -> Tables:
    """The model's lookup tables and its head, by parameter name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tables = {
        names[id(module.weight)]
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding) and id(module.weight) in names
    }
    head: Any = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    return Tables(looked_up=frozenset(tables), head=names.get(id(weight)))


def anatomy(
    model: PreTrainedModel, config: PreTrainedConfig, *, name: str, source: str, license: str | None
) -> Anatomy:
    """Parameters by kind of a model without data; tied ones count once."""
    sizes = {parameter: tensor.numel() for parameter, tensor in model.named_parameters()}
    parts: dict[Part, int] = dict.fromkeys(("embedding", "attention", "mlp", "experts", "other"), 0)
    for parameter, size in sizes.items():
        parts[part_of(parameter)] += size
    tables = tables_of(model)
    count, chosen = experts_of(config)
    lookups = sum(sizes[table] for table in tables.looked_up if table != tables.head)
    active = sum(sizes.values()) - lookups - parts["experts"] + parts["experts"] * chosen // max(count, 1)
    text = config.get_text_config()
    return Anatomy(
        name=name,
        source=source,
        architecture=type(model).__name__,
        license=license,
        family=family_of(model),
        embedding=parts["embedding"],
        attention=parts["attention"],
        mlp=parts["mlp"],
        experts=parts["experts"],
        other=parts["other"],
        active=active,
        expert_count=count,
        experts_per_token=chosen,
        layers=len(kinds_of(model)),
        positions=positions_of(text),
    )


def positions_of(config: PreTrainedConfig) -> int | None:
    """The longest sequence that the model was made for; None: it has no such limit."""
    for name in ("max_position_embeddings", "max_target_positions", "n_positions"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def part_of(parameter: str) -> Part:
    """Which part of the model a parameter belongs to, by the words of its name."""
    return next((part for part, pattern in PARTS if pattern.search(parameter)), "other")


def experts_of(config: PreTrainedConfig) -> tuple[int, int]:
    """(experts of a layer, experts that one token takes); (0, 0) of a model without routing."""
    text = config.get_text_config()

    def first(names: tuple[str, ...]) -> int:
        values = (getattr(text, name, None) for name in names)
        return next((value for value in values if isinstance(value, int) and value > 0), 0)

    count, chosen = first(EXPERT_COUNTS), first(EXPERTS_PER_TOKEN)
    return (count, chosen) if count > 1 and chosen else (0, 0)


def weight_bytes(
    model: PreTrainedModel, trimmed: Trimmed, weight_format: str, tables: Tables
) -> dict[Part | Literal["looked up"], int]:
    """Bytes of the weights by part, at a format, of a (possibly trimmed, possibly cut) model; lookups stand apart."""
    found: dict[Any, float] = dict.fromkeys((*(part for part, _ in PARTS), "looked up"), 0.0)
    for name, tensor in model.named_parameters():
        part = "looked up" if name in tables.looked_up and name != tables.head else part_of(name)
        size = stored_bytes(tuple(tensor.shape), weight_format, is_table=name in tables.looked_up)
        found[part] += size * trimmed.repeat_of(name)
    return {part: round(size) for part, size in found.items()}


def stored_bytes(shape: tuple[int, ...], weight_format: str, *, is_table: bool) -> int:
    """Bytes of one weight. 8-bit formats are for matrices; tables, norms and biases stay in bfloat16."""
    size = math.prod(shape)
    if weight_format in ("int8", "fp8"):
        if is_table or len(shape) < 2:
            return size * DTYPE_BYTES["bfloat16"]
        return size + math.prod(shape[:-1]) * SCALE_BYTES
    return size * DTYPE_BYTES[weight_format]
