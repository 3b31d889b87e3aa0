"""What several stages share, each built when it is first needed and never otherwise.

A second run finds its stages in the store and touches almost none of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

import neuron_port
from neuron_port.checkpoint import (
    Prompt,
    WeightReader,
    build_skeleton,
    load_config,
    load_model,
    load_tokenizer,
    with_quantized_layers,
)
from neuron_port.pipeline.options import ConvertOptions
from neuron_port.pipeline.samples import make_sample
from neuron_port.port.export import ExportedGraph
from neuron_port.registry import RegisteredRecipe, Registry, recipe_folders
from neuron_port.store import Store
from neuron_port.types import Checkpoint, Family, digest
from neuron_port.walk.families import family_of, programs_of
from neuron_port.walk.families.encoder import wanted_inputs
from neuron_port.walk.pooling import pool_with, read_pooling
from neuron_port.walk.program import GraphShapes, Program
from neuron_port.walk.sharding import Sharding, part_of, shard
from neuron_port.walk.walker import Walk, walk

# Above this the whole-model proofs (float32 oracle, ported weights, XLA's copy) leave a laptop's memory.
FULL_PROOF_LIMIT_BYTES = 3 * 2**30
# What decides which values a model has, and what a quantised layer computes of them.
WEIGHTS_CODE = ("checkpoint/weights", "checkpoint/conversion", "checkpoint/quantization")


class Workbench:
    """The checkpoint and everything derived from it in memory."""

    def __init__(self, options: ConvertOptions, checkpoint: Checkpoint, store: Store) -> None:
        self.options = options
        self.checkpoint = checkpoint
        self.store = store
        self._models: dict[torch.dtype, PreTrainedModel] = {}
        self.exported: dict[tuple[int, torch.dtype], ExportedGraph] = {}
        self._walks: dict[torch.dtype, list[Walk]] = {}

    @cached_property
    def registry(self) -> Registry:
        return Registry(*recipe_folders(*self.options.recipe_folders))

    @cached_property
    def config(self) -> transformers.PreTrainedConfig:
        return load_config(self.checkpoint)

    @cached_property
    def tokenizer(self) -> transformers.PreTrainedTokenizerBase | None:
        return load_tokenizer(self.checkpoint)

    @cached_property
    def reader(self) -> WeightReader:
        return WeightReader(self.checkpoint)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that ships."""
        return getattr(torch, self.options.dtype)

    @property
    def proof_dtypes(self) -> tuple[torch.dtype, ...]:
        """float32 first, where only logic can differ; then what ships."""
        return (torch.float32,) if self.dtype is torch.float32 else (torch.float32, self.dtype)

    @cached_property
    def full_proof(self) -> bool:
        """Whether the whole model is run, or its kernels and graphs alone."""
        if self.options.proof != "auto":
            return self.options.proof == "full"
        return 4 * self.parameter_count <= FULL_PROOF_LIMIT_BYTES

    @cached_property
    def parameter_count(self) -> int:
        return sum(spec.size for spec in self.checkpoint.weights.values())

    def skeleton(self, dtype: torch.dtype) -> PreTrainedModel:
        """The model without data; for several ranks, what each of them has of it."""
        model = self._whole_skeleton(dtype)
        if self.sharding is not None:
            shard(model, self.sharding.ranks, known=self.sharding)
        return model

    def _whole_skeleton(self, dtype: torch.dtype) -> PreTrainedModel:
        model = with_quantized_layers(build_skeleton(self.config, dtype), self.checkpoint)
        pool_with(model, read_pooling(Path(self.checkpoint.directory)))
        return model

    @cached_property
    def sharding(self) -> Sharding | None:
        """How the model is cut over ranks; None for one rank."""
        ranks = self.options.tensor_parallel
        return None if ranks == 1 else shard(self._whole_skeleton(self.dtype), ranks)

    def first_part(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Of a parameter's values what rank 0 has of them: all of them, unless the model is cut over ranks."""
        return tensor if self.sharding is None else part_of(tensor, self.sharding.tensors.get(name), 0)

    @cached_property
    def family(self) -> Family:
        return family_of(self.skeleton(self.dtype))

    @cached_property
    def takes_text(self) -> bool:
        return self.family == "causal" or "input_ids" in wanted_inputs(self.skeleton(self.dtype))

    def programs(self, model: PreTrainedModel) -> list[Program]:
        """Every graph that the options ask for, of this model."""
        options = self.options
        return programs_of(
            model,
            GraphShapes(batch=options.batch, buckets=options.buckets, cache_length=options.cache_length),
        )

    def walks(self, dtype: torch.dtype) -> list[Walk]:
        """One walk for each program, in their order."""
        if dtype not in self._walks:
            model = self.skeleton(dtype)
            revision = self.checkpoint.revision
            self._walks[dtype] = [walk(model, revision, program) for program in self.programs(model)]
        return self._walks[dtype]

    def model(self, dtype: torch.dtype) -> PreTrainedModel:
        """transformers' own model with the real weights; one dtype is kept at a time."""
        if dtype not in self._models:
            self._models.clear()
            model = load_model(self.checkpoint.unquantized or self.checkpoint, dtype)
            with_quantized_layers(model, self.checkpoint, self.reader.get)
            pool_with(model, read_pooling(Path(self.checkpoint.directory)))
            self._models[dtype] = model
        return self._models[dtype]

    def forget_model(self) -> None:
        self._models.clear()

    def sample(self, number: int) -> dict[str, torch.Tensor]:
        """The model's inputs for the prompt of that number, one row."""
        return make_sample(self, number)

    def prompt_ids(self, prompt: Prompt, number: int) -> list[int]:
        """Token ids of a prompt; of a model without tokenizer, deterministic random ones."""
        if self.tokenizer is None:
            vocabulary = self.config.get_text_config().vocab_size
            generator = torch.Generator().manual_seed(number)
            return torch.randint(0, vocabulary, (6 + 4 * number,), generator=generator).tolist()
        if prompt.chat and self.tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt.text}]
            encoded: Any = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True
            )
            return list(encoded["input_ids"])
        return list(self.tokenizer(prompt.text)["input_ids"])

    def decode_text(self, tokens: Sequence[int]) -> str:
        if self.tokenizer is None:
            return " ".join(map(str, tokens))
        return str(self.tokenizer.decode(list(tokens)))


def oracle_name() -> str:
    """What every claim was judged against."""
    return f"transformers {transformers.__version__}, torch {torch.__version__}, cpu"


def code_digest(*packages: str) -> str:
    """Digest of the sources of `neuron_port`'s named files and packages: a proof holds for the code that made it."""
    root = Path(neuron_port.__file__).parent
    found = hashlib.sha256()
    for package in packages:
        place = root / package
        files = [place.with_suffix(".py")] if not place.is_dir() else sorted(place.rglob("*.py"))
        for file in files:
            found.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]


def recipe_digest(found: RegisteredRecipe) -> str:
    """Digest of what decides a recipe's behaviour: its binding, reference and kernel."""
    return digest(*(found.source_text(name) for name in ("recipe.py", "reference.py", "kernel.py")))
