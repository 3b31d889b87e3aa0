"""How many tensor-parallel ranks: what the user said, else the preset's number where one core is too small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from neuron_port.errors import UsageError
from neuron_port.lower.linting import HBM_BYTES_PER_CORE
from neuron_port.pipeline.options import ConvertOptions
from neuron_port.pipeline.workbench import Workbench
from neuron_port.store import Store
from neuron_port.types import DTYPE_BYTES, Checkpoint

# What the Neuron runtime supports (libraries/nxd-inference/developer_guides/feature-guide.rst, tensor parallelism).
DOCUMENTED_DEGREES = {
    "trn2": (1, 2, 4, 8, 16, 32, 64),
    "inf2": (1, 2, 4, 8, 24),
    "trn1": (1, 2, 8, 16, 32),
}


def with_degree(
    options: ConvertOptions, checkpoint: Checkpoint, store: Store, say: Callable[[str], None]
) -> ConvertOptions:
    """The options with the number of ranks decided; `say` is told what a user might not expect."""
    chosen = replace(options, tensor_parallel=_degree(options, checkpoint, store, say))
    documented = DOCUMENTED_DEGREES[options.target]
    if chosen.tensor_parallel not in documented:
        listed = ", ".join(map(str, documented))
        say(f"the documents name {listed} ranks for {options.target}, not {chosen.tensor_parallel}")
    return chosen


def _degree(options: ConvertOptions, checkpoint: Checkpoint, store: Store, say: Callable[[str], None]) -> int:
    if options.tensor_parallel > 1 or options.preset_ranks == 1:
        return options.tensor_parallel
    ranks = options.preset_ranks
    needed = _bytes(checkpoint, options.dtype)
    limit = HBM_BYTES_PER_CORE[options.target]
    if needed <= limit:
        say(f"converted for one core; its preset proposes {ranks}: --tensor-parallel {ranks}")
        return 1
    sizes = f"its weights are {needed >> 30} GiB, a core of {options.target} has {limit >> 30}"
    if checkpoint.weight_format is not None:
        say(f"{sizes}; still it is converted for one: {checkpoint.weight_format} weights are not cut yet")
        return 1
    try:
        Workbench(replace(options, tensor_parallel=ranks), checkpoint, store).sharding  # noqa: B018 - may refuse
    except UsageError as error:
        say(f"{sizes}; still it is converted for one: {error.message}")
        return 1
    say(f"{sizes}: {ranks} ranks, as in its preset (--tensor-parallel 1 for one)")
    return ranks


def _bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """Of all weights as the graphs read them: quantised ones and their scales as they are, the others in `dtype`."""
    plain = checkpoint.weights if checkpoint.unquantized is None else checkpoint.unquantized.weights
    return sum(
        spec.size * DTYPE_BYTES[dtype] if name in plain else spec.size_bytes
        for name, spec in checkpoint.weights.items()
    )
