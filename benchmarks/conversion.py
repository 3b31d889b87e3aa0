"""Conversion time against the number of layers: `python benchmarks/conversion.py`.

Small Llamas that differ in nothing but their number of layers are converted (random weights, kernel proof) in this
process, each into a fresh store: seconds per stage, and the growth per added layer. Equal layers share a signature,
so the number of kernels that are verified must not grow; it is counted in the store. Then the smallest model is
converted again (what is reused?), and the largest into the smallest one's store (what is shared between models?).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from rich.console import Console

from neuron_port.pipeline.convert import convert
from neuron_port.pipeline.kernel_proof import STAGE as KERNEL_PROOF
from neuron_port.pipeline.options import complete_options
from neuron_port.report import Conversion, LiveView
from neuron_port.store import Store

LAYER_COUNTS = (2, 4, 8, 16)
PROMPT_TOKENS, CACHE_SLOTS = 64, 128
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.06,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One conversion: its stages, and how many kernel proofs it added to its store."""

    conversion: Conversion
    seconds: float
    proofs_made: int

    @property
    def layers(self) -> int:
        """Layers that the plan decides about, over both graphs."""
        return sum(len(graph.layers) for graph in self.conversion.graphs)

    @property
    def cases(self) -> int:
        """Comparisons in the kernel proof, sabotages included."""
        return sum(len(report.cases) for report in self.conversion.kernel_reports)

    def stage_seconds(self, name: str) -> float:
        """How long the named stage took."""
        return next(stage.seconds for stage in self.conversion.stages if stage.name == name)


COUNTED: Mapping[str, Callable[[Measured], int]] = {
    "layers in both graphs": lambda run: run.layers,
    "kernels verified": lambda run: run.proofs_made,
    "comparisons in the proof": lambda run: run.cases,
}


def write_model(place: Path, layers: int) -> Path:
    """A folder with nothing but the configuration of a Llama of `layers` layers."""
    folder = place / f"llama-{layers}-layers"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    return folder


def measure(place: Path, layers: int, store: Store) -> Measured:
    """Convert the model of `layers` layers with what is in `store`, and count the kernel proofs made."""
    options = complete_options(
        str(write_model(place / "models", layers)),
        buckets=(PROMPT_TOKENS,),
        cache_length=CACHE_SLOTS,
        output=place / "bundles" / f"llama-{layers}-layers",
        random_weights=True,
        new_tokens=2,
        proof="kernels",
    )
    proofs_before = stored_proofs(store)
    started = time.perf_counter()
    with LiveView(Console(file=io.StringIO()), enabled=False) as view:
        conversion = convert(options, view, store)
    return Measured(
        conversion=conversion,
        seconds=time.perf_counter() - started,
        proofs_made=stored_proofs(store) - proofs_before,
    )


def stored_proofs(store: Store) -> int:
    """How many kernel proofs the store holds."""
    folder = store.root / KERNEL_PROOF
    return sum(path.is_dir() for path in folder.iterdir()) if folder.is_dir() else 0


def rounds(place: Path, counts: Sequence[int], repeats: int) -> dict[int, list[Measured]]:
    """Every model converted `repeats` times, each time into an empty store; the models take turns."""
    runs: dict[int, list[Measured]] = {layers: [] for layers in counts}
    for number in range(repeats):
        for layers in counts:
            runs[layers].append(measure(place, layers, store_of(place, layers, number)))
    return runs


def store_of(place: Path, layers: int, number: int = 0) -> Store:
    """The store of one conversion."""
    return Store(place / "stores" / f"{layers}-layers-{number}")


def print_growth(runs: Mapping[int, Sequence[Measured]]) -> None:
    """Median seconds of every stage for every number of layers, and the slope from the smallest to the largest."""
    counts = list(runs)
    added = counts[-1] - counts[0]
    print(f"| stage, seconds | {' | '.join(f'{layers} layers' for layers in counts)} | per added layer |")
    print(f"|---|{'---:|' * (len(counts) + 1)}")

    def print_row(name: str, times: list[float]) -> None:
        cells = " | ".join(f"{seconds:.2f}" for seconds in times)
        print(f"| {name} | {cells} | {(times[-1] - times[0]) / added:+.2f} |")

    for stage in runs[counts[0]][0].conversion.stages:
        name = stage.name
        print_row(name, [statistics.median(run.stage_seconds(name) for run in runs[n]) for n in counts])
    totals = [median_seconds(runs[layers]) for layers in counts]
    print_row("**all**", totals)
    for name, count in COUNTED.items():
        cells = [sorted({count(run) for run in runs[layers]}) for layers in counts]
        print(f"| {name} | {' | '.join(' or '.join(map(str, cell)) for cell in cells)} | |")
    size, time_ratio = counts[-1] / counts[0], totals[-1] / totals[0]
    print(f"\n{size:.1f} times the layers take {time_ratio:.2f} times as long.", flush=True)


def median_seconds(runs: Sequence[Measured]) -> float:
    """The median length of several conversions of one model."""
    return statistics.median(run.seconds for run in runs)


def print_reuse(title: str, fresh_seconds: float, again: Measured) -> None:
    """What a conversion took from a store that was not empty, and its time beside that into an empty one."""
    reused = [stage.name for stage in again.conversion.stages if stage.reused]
    made = [stage.name for stage in again.conversion.stages if not stage.reused]
    print(f"\n{title}: {again.seconds:.2f} s, into an empty store {fresh_seconds:.2f} s.")
    print(f"- stages from the store: {', '.join(reused) or 'none'}")
    print(f"- stages run: {', '.join(made) or 'none'}")
    print(f"- kernels verified: {again.proofs_made} of {len(again.conversion.kernel_reports)}")


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more: `{text}`")
    return value


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--layers", type=positive, nargs="+", default=LAYER_COUNTS, help="numbers of layers to compare"
    )
    parser.add_argument("--repeats", type=positive, default=3, help="conversions of each; medians are shown")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of the libraries, as the command line does
    counts = sorted(set(arguments.layers))
    if len(counts) < 2:
        parser.error("--layers needs two different numbers")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads; Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}; "
        f"medians of {arguments.repeats}\n"
    )
    with tempfile.TemporaryDirectory(prefix="neuron-port-benchmark-") as name:
        place = Path(name)
        measure(place, 1, Store(place / "stores" / "warm-up"))  # imports and caches of the libraries
        runs = rounds(place, counts, arguments.repeats)
        print_growth(runs)
        small, large = counts[0], counts[-1]
        again = measure(place, small, store_of(place, small))
        print_reuse(f"{small} layers again, same store", median_seconds(runs[small]), again)
        other = measure(place, large, store_of(place, small))
        print_reuse(f"{large} layers into the store of {small}", median_seconds(runs[large]), other)


if __name__ == "__main__":
    main()
