"""Sizes of models without data: figures of real sizes cost milliseconds."""

from __future__ import annotations

from typing import Any

from neuron_port.checkpoint.presets import find_preset
from neuron_port.preflight.anatomy import anatomy
from neuron_port.preflight.blocks import meta_model, trim
from neuron_port.preflight.sizing import Sizes


def make_sizes(
    config: Any, name: str, *, batch: int = 1, context: int = 4096, weight_format: str = "bfloat16"
) -> Sizes:
    """The sizes of a configuration, as `check` makes them."""
    whole = meta_model(config)
    found = anatomy(whole, config, name=name, source="a test", license=None)
    return Sizes(whole, trim(config, whole), found, batch=batch, context=context, weight_format=weight_format)


def config_of(preset: str, **changes: Any) -> Any:
    """transformers' configuration of a preset, with some values changed."""
    from transformers import AutoConfig

    found = find_preset(preset)
    assert found is not None
    assert found.config is not None
    return AutoConfig.for_model(**{**found.config, **changes})
