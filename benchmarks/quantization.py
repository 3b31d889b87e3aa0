"""What weight formats cost a model: `python benchmarks/quantization.py [MODEL] [--new-tokens N]`.

The unquantised model and one for each format, in float32 by transformers on the CPU, on the model's own prompts: the
figures of docs/quantization.md. No graph is made and no kernel runs. Models and answers are kept in neuron-port's store.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from neuron_port.checkpoint import quantized, resolve
from neuron_port.pipeline.options import WEIGHT_FORMATS, complete_options
from neuron_port.pipeline.quantization_cost import quantization_cost
from neuron_port.pipeline.workbench import Workbench
from neuron_port.report.numbers import bytes_text, metric_text
from neuron_port.report.quantization import cost_columns
from neuron_port.store import Store
from neuron_port.types import QuantizationCost


def measure(model: str, form: str, new_tokens: int) -> QuantizationCost:
    """The cost of one format on the prompts that the model's preset has, or the usual ones."""
    options = complete_options(model, new_tokens=new_tokens, weight_format=form)
    store = Store()
    work = Workbench(options, quantized(resolve(model, store=store), form), store)
    return quantization_cost(work, [], lambda *_: None)[0]


def table(costs: list[QuantizationCost]) -> Table:
    """A row for each prompt and format, and the means."""
    shown = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    columns = cost_columns(costs[0])
    for title in ("format", "bytes", "prompt", "places", *(title for _, title in columns)):
        shown.add_column(title, justify="left" if title in ("format", "prompt") else "right")
    for cost in costs:
        size = bytes_text(cost.bytes_after)
        for item in cost.prompts:
            values = [metric_text(item.metrics[name]) for name, _ in columns]
            words = " ".join(item.name.split())
            shown.add_row(cost.weight_format, size, words[:40], str(item.places), *values)
        means = [metric_text(cost.means[name]) for name, _ in columns]
        shown.add_row(cost.weight_format, size, "means", "", *means, style="bold")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model", nargs="?", default="smollm2-135m", help="a causal or sequence-to-sequence model"
    )
    parser.add_argument("--new-tokens", type=int, default=32)
    arguments = parser.parse_args()
    costs = [measure(arguments.model, form, arguments.new_tokens) for form in WEIGHT_FORMATS]
    Console(width=200).print(table(costs))


if __name__ == "__main__":
    main()
