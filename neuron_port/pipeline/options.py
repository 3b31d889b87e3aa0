"""What a conversion is asked to do: the user's options, completed from the preset and from sensible defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neuron_port.checkpoint import Prompt, find_preset
from neuron_port.errors import UsageError

GENERATION_OF_TARGET = {"inf2": "gen2", "trn1": "gen2", "trn2": "gen3"}
DTYPES = ("bfloat16", "float32")
WEIGHT_FORMATS = ("int8", "fp8")
DEFAULT_PROMPTS = (
    Prompt(text="The capital of France is"),
    Prompt(text="Water freezes at zero degrees Celsius and boils at"),
    Prompt(text="Once upon a time, in a small village by the sea, there lived an old fisherman who"),
)


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Everything that decides what a conversion gives."""

    model: str
    target: str
    dtype: str
    buckets: tuple[int, ...]
    cache_length: int
    batch: int
    prompts: tuple[Prompt, ...]
    new_tokens: int
    output: Path
    weights: Literal["copy", "link", "reference"] = "copy"
    revision: str | None = None
    random_weights: bool = False
    compiler_layers: tuple[str, ...] = ()
    recipe_folders: tuple[Path, ...] = ()
    proof: Literal["auto", "full", "kernels"] = "auto"
    weight_format: str | None = None  # None: all weights in `dtype`
    tensor_parallel: int = 1  # ranks, a core each
    preset_ranks: int = 1  # what the preset proposes where the user said nothing (degree.py)

    @property
    def generation(self) -> str:
        return GENERATION_OF_TARGET[self.target]


def complete_options(
    model: str,
    *,
    target: str | None = None,
    dtype: str | None = None,
    buckets: Sequence[int] = (),
    cache_length: int | None = None,
    batch: int | None = None,
    prompts: Sequence[str] = (),
    output: Path | None = None,
    tensor_parallel: int | None = None,
    **others: Any,
) -> ConvertOptions:
    """Fill what the user left open from the model's preset, and refuse what cannot be.

    Raises:
        UsageError: a value that no target or graph can have.
    """
    preset = find_preset(model)
    defaults = dict(preset.convert) if preset else {}
    preset_prompts = preset.prompts if preset and preset.prompts else DEFAULT_PROMPTS
    chosen_target = target or defaults.get("target", "trn2")
    chosen_dtype = dtype or defaults.get("dtype", "bfloat16")
    chosen_buckets = tuple(sorted(set(buckets or defaults.get("buckets", (128,)))))
    weight_format = others.get("weight_format")
    suffix = f"-{weight_format}" if weight_format else ""
    suffix += f"-tp{tensor_parallel}" if (tensor_parallel or 1) > 1 else ""
    options = ConvertOptions(
        model=model,
        target=chosen_target,
        dtype=chosen_dtype,
        buckets=chosen_buckets,
        cache_length=_first_given(cache_length, defaults.get("cache_length"), 2 * max(chosen_buckets)),
        batch=_first_given(batch, defaults.get("batch"), 1),
        prompts=tuple(Prompt(text=text) for text in prompts) or preset_prompts,
        tensor_parallel=_first_given(tensor_parallel, 1),
        preset_ranks=_first_given(tensor_parallel and 1, defaults.get("tensor_parallel"), 1),
        output=output
        or Path("bundles")
        / f"{Path(model).name.removesuffix('.gguf')}-{chosen_target}-{chosen_dtype}{suffix}",
        **others,
    )
    _check(options)
    return options


def _first_given(*values: int | None) -> int:
    """The first that is not None; a zero was asked for, and is refused later instead of replaced."""
    return next(value for value in values if value is not None)


def _check(options: ConvertOptions) -> None:
    if options.target not in GENERATION_OF_TARGET:
        raise UsageError(
            f"Unknown target: `{options.target}`", hint=f"One of {', '.join(GENERATION_OF_TARGET)}."
        )
    if options.dtype not in DTYPES:
        raise UsageError(f"Unknown dtype: `{options.dtype}`", hint=f"One of {', '.join(DTYPES)}.")
    if options.weight_format not in (None, *WEIGHT_FORMATS):
        raise UsageError(
            f"Unknown weight format: `{options.weight_format}`",
            hint=f"One of {', '.join(WEIGHT_FORMATS)}; without the option all weights are in --dtype.",
        )
    if min(options.buckets) < 1:
        raise UsageError(
            f"A bucket must hold at least one token: `{min(options.buckets)}`",
            hint="Such as --buckets 64,256.",
        )
    if options.cache_length < max(options.buckets):
        raise UsageError(
            f"The cache of {options.cache_length} slots cannot hold the largest bucket, {max(options.buckets)} tokens",
            hint=f"Use --cache-length {2 * max(options.buckets)}, or smaller --buckets.",
        )
    if options.batch < 1:
        raise UsageError(f"The batch must be at least one: `{options.batch}`", hint="Use --batch 1.")
    if options.tensor_parallel < 1:
        raise UsageError(
            f"There must be at least one rank: `{options.tensor_parallel}`", hint="Use --tensor-parallel 2."
        )
    if options.new_tokens < 2:
        raise UsageError(
            f"At least two tokens must be generated for the proof: `{options.new_tokens}`",
            hint="Use --new-tokens 2 or more.",
        )
    if options.weight_format and options.tensor_parallel > 1:
        raise UsageError(
            f"Weights in {options.weight_format} cannot be cut over {options.tensor_parallel} ranks yet",
            hint="Use --tensor-parallel 1, or leave --weight-format out.",
        )
