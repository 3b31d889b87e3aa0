"""The roofline of `neuron-port check` beside what AWS published: `python benchmarks/preflight_published.py CHECKOUT`.

CHECKOUT is one of aws-neuron/aws-neuron-sdk. Its benchmark tables of decoders on Inf2 and Trn1 (transformers-neuronx,
SDK 2.18) state the median time for each further token and to the first one. Prints the prediction beside every row.
No constant was fitted to the times for each token; the share of TFLOPS in prefill was chosen with the first ones in view.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from neuron_port.instances import instance
from neuron_port.preflight.records import Work
from neuron_port.preflight.roofline import decode_step, machine_of, prefill_step

TABLES = Path("about-neuron/benchmarks")


class Shape(NamedTuple):
    """A decoder's sizes, from its public configuration."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int


SHAPES = {
    "Llama-2-7b": Shape(32000, 4096, 11008, 32, 32, 32),
    "Llama-2-13b": Shape(32000, 5120, 13824, 40, 40, 40),
    "CodeLlama-13b-hf": Shape(32016, 5120, 13824, 40, 40, 40),
    "Llama-2-70b": Shape(32000, 8192, 28672, 80, 64, 8),
    "Llama-3-8B": Shape(128256, 4096, 14336, 32, 32, 8),
    "Llama-3-70B": Shape(128256, 8192, 28672, 80, 64, 8),
    "Mistral-7B-Instruct-v0.2": Shape(32000, 4096, 14336, 32, 32, 8),
}


def rows(checkout: Path) -> Iterator[dict[str, str]]:
    """Every distinct published row, with its chip."""
    seen = set()
    for chip in ("inf2", "trn1"):
        for kind in ("latency", "throughput"):
            with (checkout / TABLES / chip / f"{kind}_data_decoder.csv").open() as file:
                for row in csv.DictReader(file):
                    key = tuple(
                        row[name] for name in ("Model", "Batch Size", "Sequence Length", "Input Length")
                    )
                    if (chip, key) not in seen:
                        seen.add((chip, key))
                        yield {**row, "chip": chip}


def work_of(shape: Shape, bytes_per_weight: int) -> Work:
    """The model's step: four attention matrices, three of the MLP, the head; the table of tokens is looked up."""
    head_size = shape.hidden // shape.heads
    attention = 2 * shape.hidden * shape.hidden + 2 * shape.hidden * shape.key_value_heads * head_size
    blocks = shape.layers * (attention + 3 * shape.hidden * shape.intermediate)
    table = shape.vocabulary * shape.hidden
    return Work(
        linear_flops_per_token=2 * (blocks + table),
        pair_flops=4.0 * shape.hidden * shape.layers,
        weight_bytes=bytes_per_weight * (blocks + table) + 2 * table,
        expert_bytes=0,
        embedding_bytes=2 * table,
        experts_share=0.0,
        hidden_bytes_per_token=2 * shape.hidden,
        forward_flops=0.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    errors: dict[tuple[str, str], list[float]] = {}
    for row in rows(parser.parse_args().checkout):
        shape = SHAPES[row["Model"]]
        batch, degree = int(row["Batch Size"]), int(row["TP Degree"])
        context, prompt = int(row["Sequence Length"]), int(row["Input Length"])
        work = work_of(shape, 1 if row["Weight Storage Data Type"] == "int8" else 2)
        machine = machine_of(instance(row["Inst. Type"].lower()))
        cached = 4 * shape.layers * shape.key_value_heads * (shape.hidden // shape.heads)
        shared = max(1.0, degree / shape.key_value_heads)  # ranks that keep the same head
        each = decode_step(
            machine, degree, work, batch=batch, context=context, state_bytes=batch * context * cached * shared,
            all_reduces=2 * shape.layers,
        )  # fmt: skip
        first = prefill_step(machine, degree, work, tokens=prompt, all_reduces=2 * shape.layers)
        for what, predicted, published in (
            ("each", each.seconds * 1e3, float(row["TPOT Latency P50 (ms)"])),
            ("first", batch * first.seconds * 1e3, float(row["TTFT Latency P50 (ms)"])),
        ):
            error = predicted / published - 1
            errors.setdefault((row["chip"], f"{what}, batch {'1' if batch == 1 else '4 and 8'}"), []).append(
                error
            )
            print(
                f"{row['chip']}  {row['Model']:25s} batch {batch} of {context:5d}, prompt {prompt:4d}  {what:5s} "
                f"published {published:8.1f} ms  predicted {predicted:8.1f} ms  {error:+5.0%}"
            )
    for (chip, what), found in errors.items():
        print(
            f"{chip}, {what}: {len(found)} points, median error {statistics.median(found):+.0%}, median absolute error "
            f"{statistics.median(map(abs, found)):.0%}"
        )


if __name__ == "__main__":
    main()
