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
from collections.abc import Sequence
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

    layers: int
    conversion: Conversion
    seconds: float
    proofs_made: int

    @property
    def cases(self) -> int:
        """Comparisons in the kernel proof, sabotages included."""
        return sum(len(report.cases) for report in self.conversion.kernel_reports)

    def stage_seconds(self, name: str) -> float:
        """How long the named stage took."""
        return next(stage.seconds for stage in self.conversion.stages if stage.name == name)


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
        layers=layers,
        conversion=conversion,
        seconds=time.perf_counter() - started,
        proofs_made=stored_proofs(store) - proofs_before,
    )


def stored_proofs(store: Store) -> int:
    """How many kernel proofs the store holds."""
    folder = store.root / KERNEL_PROOF
    return sum(path.is_dir() for path in folder.iterdir()) if folder.is_dir() else 0


def median_run(place: Path, layers: int, repeats: int) -> tuple[Measured, Store]:
    """The run of median length of several, each into a store of its own."""
    runs = []
    for number in range(repeats):
        store = Store(place / "stores" / f"{layers}-{number}")
        runs.append((measure(place, layers, store), store))
    middle = statistics.median_low(run.seconds for run, _ in runs)
    return next(pair for pair in runs if pair[0].seconds == middle)


def print_growth(runs: Sequence[Measured]) -> None:
    """Seconds of every stage for every number of layers, and the slope between the smallest and the largest."""
    first, last = runs[0], runs[-1]
    added = last.layers - first.layers
    print(f"| stage, seconds | {' | '.join(f'{run.layers} layers' for run in runs)} | per added layer |")
    print(f"|---|{'---:|' * (len(runs) + 1)}")
    for name in [stage.name for stage in first.conversion.stages]:
        times = [run.stage_seconds(name) for run in runs]
        print(f"| {name} | {_cells(times)} | {(times[-1] - times[0]) / added:+.3f} |")
    growth = (last.seconds - first.seconds) / added
    print(f"| **all** | {_cells([run.seconds for run in runs])} | {growth:+.3f} |")
    print(f"| layers in both graphs | {' | '.join(str(_layer_count(run)) for run in runs)} | |")
    print(f"| kernels verified | {' | '.join(str(run.proofs_made) for run in runs)} | |")
    print(f"| comparisons in the proof | {' | '.join(str(run.cases) for run in runs)} | |")
    size, time_ratio = last.layers / first.layers, last.seconds / first.seconds
    print(f"\n{size:.0f} times the layers take {time_ratio:.2f} times as long.")


def _cells(times: Sequence[float]) -> str:
    return " | ".join(f"{seconds:.2f}" for seconds in times)


def _layer_count(run: Measured) -> int:
    return sum(len(graph.layers) for graph in run.conversion.graphs)


def print_reuse(title: str, fresh: Measured, again: Measured) -> None:
    """What a conversion took from a store that was not empty, beside the same conversion into an empty one."""
    reused = [stage.name for stage in again.conversion.stages if stage.reused]
    made = [stage.name for stage in again.conversion.stages if not stage.reused]
    print(f"\n{title}: {again.seconds:.2f} s, into an empty store {fresh.seconds:.2f} s.")
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
    parser.add_argument("--repeats", type=positive, default=3, help="conversions of each, the median counts")
    arguments = parser.parse_args()
    counts = sorted(set(arguments.layers))
    if len(counts) < 2:
        parser.error("--layers needs two different numbers")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; median of {arguments.repeats}\n"
    )
    with tempfile.TemporaryDirectory(prefix="neuron-port-benchmark-") as name:
        place = Path(name)
        measure(place, 1, Store(place / "stores" / "warm-up"))  # imports and caches of the libraries
        pairs = [median_run(place, count, arguments.repeats) for count in counts]
        runs, small_store = [run for run, _ in pairs], pairs[0][1]
        print_growth(runs)
        again = measure(place, counts[0], small_store)
        print_reuse(f"{counts[0]} layers again, same store", runs[0], again)
        other = measure(place, counts[-1], small_store)
        print_reuse(f"{counts[-1]} layers into the store of {counts[0]}", runs[-1], other)


if __name__ == "__main__":
    main()
