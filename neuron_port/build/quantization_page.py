"""What quantised weights cost, as a bundle tells it: the manifest's entry, and a part of parity/report.md."""

from __future__ import annotations

from typing import Any

from neuron_port.types import QuantizationCost, to_json


def cost_entry(cost: QuantizationCost | None) -> dict[str, Any] | None:
    """The manifest's `parity.quantization_cost`: every prompt, and means; None where none was measured."""
    return None if cost is None else {**to_json(cost), "means": cost.means}


def cost_page(cost: QuantizationCost | None) -> str:
    """A section of report.md, or nothing."""
    if cost is None:
        return ""
    names = list(cost.prompts[0].metrics)
    lines = [
        "",
        f"## What {cost.weight_format} weights cost",
        "",
        f"The proofs above are of the quantised model. Here it stands beside the unquantised one ({cost.oracle}). "
        f"{cost.quantized_parameters:,} of {cost.parameters:,} weights, those of {cost.layers} linear layers, take one "
        f"byte: {cost.bytes_after / 2**20:,.0f} MiB instead of {cost.bytes_before / 2**20:,.0f} MiB. None of these "
        "figures has a limit.",
        "",
        f"| {cost.unit} | places | {' | '.join(name.replace('_', ' ') for name in names)} |",
        f"| --- | {' | '.join('---' for _ in ('places', *names))} |",
    ]
    for item in cost.prompts:
        values = (f"{item.metrics[name]:.4g}" if name in item.metrics else "" for name in names)
        lines.append(f"| {_cell(item.name)} | {item.places} | {' | '.join(values)} |")
    means = (f"{cost.means[name]:.4g}" if name in cost.means else "" for name in names)
    lines.append(f"| all (means; of perplexity geometric, of kl max the largest) | | {' | '.join(means)} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    """A prompt in one cell of a table."""
    words = " ".join(text.split()).replace("|", "\\|")
    return words if len(words) <= 60 else f"{words[:57]}..."
