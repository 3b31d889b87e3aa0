"""Weights one tensor at a time, so that a model larger than memory can be read layer by layer.

Real weights are memory-mapped from safetensors, and made into the modules' own names and shapes where the files have
others (conversion.py). Random ones depend on the tensor's name and shape only: they
are the same on every machine and in any order, and `load_model` uses the very same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from neuron_port.checkpoint.architecture import build_meta_model, parse_config, tied_names_of
from neuron_port.checkpoint.conversion import Conversion, read_stored
from neuron_port.checkpoint.quantization import DERIVED, quantized_tensor
from neuron_port.checkpoint.safetensors_file import stored_tensors
from neuron_port.errors import CheckpointError
from neuron_port.types import Checkpoint

RANDOM_WEIGHTS_VERSION = 1  # part of a random checkpoint's revision: change it when the values change
DEFAULT_STANDARD_DEVIATION = 0.02


class WeightReader:
    """The tensors of a checkpoint by module parameter name (`model.layers.0.self_attn.q_proj.weight`)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        directory, source = Path(checkpoint.directory), checkpoint.unquantized
        self._unquantized = None if source is None else WeightReader(source)
        self._stored = {} if checkpoint.random_weights or source else stored_tensors(directory)
        self._conversion = (
            Conversion(build_meta_model(parse_config(directory)), self._stored)
            if checkpoint.converted and self._stored
            else None
        )

    def names(self) -> tuple[str, ...]:
        """All names, each tensor once: a tied `lm_head.weight` is readable but listed under its home only."""
        return tuple(self.checkpoint.weights)

    def canonical(self, name: str) -> str:
        """The listed name of the tensor: itself, or the home of a tied one; quantised ones are "derived:<name>".

        Raises CheckpointError for a name that the model does not have.
        """
        if self._is_quantized(name):
            return f"{DERIVED}{name}"
        if name in self.checkpoint.weights:
            return name
        home = tied_names_of(self.checkpoint.directory).get(name)
        if home is None:
            raise CheckpointError(
                f"`{self.checkpoint.name}` has no tensor `{name}`.",
                hint=f"It has {len(self.names())}, the first is `{self.names()[0]}`.",
            )
        return home

    def get(self, name: str, dtype: torch.dtype = torch.float32, *, first: int | None = None) -> torch.Tensor:
        """A fresh tensor with the weight's values, converted to `dtype` if it is a floating-point one.

        first: only so many along the first axis (of a mixture's weights: experts); the rest is never in memory.
        """
        name = name.removeprefix(DERIVED)
        if self._unquantized is not None:
            if not self._is_quantized(name):
                return self._unquantized.get(name, dtype, first=first)
            made = quantized_tensor(name, self.checkpoint, self._unquantized.get)
            return made.to(dtype) if made.is_floating_point() else made
        name = self.canonical(name)
        if self.checkpoint.random_weights:
            spec = self.checkpoint.weights[name]
            shape = spec.shape if first is None else (min(first, spec.shape[0]), *spec.shape[1:])
            tensor = random_tensor(name, shape, standard_deviation(self.checkpoint))
            return tensor.to(
                dtype if spec.dtype.startswith(("float", "bfloat")) else getattr(torch, spec.dtype)
            )
        if name in self.checkpoint.converted:
            assert self._conversion is not None
            return self._conversion.read(name, dtype, first=first)
        return read_stored(name, self._stored, dtype, first=first)

    def _is_quantized(self, name: str) -> bool:
        source = self.checkpoint.unquantized
        return source is not None and name in self.checkpoint.weights and name not in source.weights


def standard_deviation(checkpoint: Checkpoint) -> float:
    """Of random matrices: the one the model was initialised with."""
    return float(checkpoint.config.get("initializer_range") or DEFAULT_STANDARD_DEVIATION)


def random_tensor(name: str, shape: tuple[int, ...], deviation: float) -> torch.Tensor:
    """Float32 values decided by name and shape: N(0, deviation), but norm scales N(1, 0.1).

    Norm scales differ from one on purpose: a port that forgets to apply them must not look right. The matrices of a
    mixture's experts are each drawn by themselves, so that one has its values whether or not the others are there.
    """
    if len(shape) == 3:
        each = [_random_values(f"{name} of {number}", shape[1:], deviation) for number in range(shape[0])]
        return torch.from_numpy(np.stack(each)) if each else torch.empty(shape)
    return torch.from_numpy(np.asarray(_random_values(name, shape, deviation)))


def _random_values(name: str, shape: tuple[int, ...], deviation: float) -> np.ndarray:
    seed = hashlib.sha256(f"{name} {list(shape)}".encode()).digest()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(seed, "little")))
    values = generator.standard_normal(shape, dtype=np.float32)
    is_scale = len(shape) == 1 and not name.endswith("bias")
    values *= np.float32(0.1 if is_scale else deviation)
    if is_scale:
        values += np.float32(1)
    return values
