"""What quantised weights cost, in words for tables and for the last lines of a conversion."""

from __future__ import annotations

from neuron_port.report.numbers import bytes_text, metric_text, share_text
from neuron_port.types import QuantizationCost

_TITLES = {
    "kl_mean": "divergence",
    "kl_max": "largest",
    "top1_agreement": "same token",
    "equal_greedy_tokens": "equal greedy",
    "greedy_tokens": "of",
    "perplexity": "perplexity",
    "perplexity_quantized": "quantised",
    "relative_error": "relative error",
    "cosine": "cosine",
}


def cost_columns(cost: QuantizationCost | None) -> list[tuple[str, str]]:
    """(metric, title) of the columns that a table of the cost has."""
    names = cost.prompts[0].metrics if cost is not None else ()
    return [(name, _TITLES.get(name, name)) for name in names]


def cost_sentences(cost: QuantizationCost) -> list[str]:
    """What was saved, and what that costs: one sentence each."""
    share = share_text(cost.quantized_parameters / cost.parameters)
    saved = (
        f"{share} of the weights in {cost.weight_format}: {bytes_text(cost.bytes_after)} instead of "
        f"{bytes_text(cost.bytes_before)}"
    )
    means = cost.means
    units = f"{len(cost.prompts)} {cost.unit}{'' if len(cost.prompts) == 1 else 's'}"
    if "kl_mean" not in means:
        lowest = min(item.metrics["cosine"] for item in cost.prompts)
        error = metric_text(means["relative_error"])
        return [
            saved,
            f"Beside the unquantised model, {units}: relative error {error}, cosine at least {lowest:.5f}",
        ]
    words = [
        f"divergence {metric_text(means['kl_mean'])} nats a token (at most {metric_text(means['kl_max'])})",
        f"the same likeliest token at {share_text(means['top1_agreement'])} of the places",
        f"{means['equal_greedy_tokens']:.1f} of {means['greedy_tokens']:.0f} greedy tokens equal",
    ]
    if "perplexity" in means:
        words.append(f"perplexity {means['perplexity_quantized']:.4g} instead of {means['perplexity']:.4g}")
    return [saved, f"Beside the unquantised model, {units}: {', '.join(words)}"]
