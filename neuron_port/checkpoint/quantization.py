"""Weight-only quantisation: the matrices of linear layers in one byte for each weight, with a scale for each output.

    values = round(weight / scale), scale = max |weight| / largest      for each row of weight [N, K]
    y = (x @ values^T) * scale + bias                                   in the dtype of x

int8 goes to 127. fp8 is the e4m3 that NeuronCores before v4 have, with infinities: it goes to 240, where torch's
float8_e4m3fn goes on to 448. Up to 240 the bits of both mean the same, so the bits are kept as bytes (uint8), which
every file format, runtime and compiler carries. e5m2, with one bit less, would be further from the weights.

Quantised are the modules that are linear layers and nothing else (torch's Linear, transformers' Conv1D). Embeddings,
norms, the output projection (most often the embedding itself) and experts that are merged into one tensor are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from neuron_port.checkpoint.architecture import build_meta_model, parse_config, tied_names
from neuron_port.errors import CheckpointError, UsageError
from neuron_port.types import Checkpoint, TensorSpec, digest

QUANTIZATION_VERSION = 1  # part of a quantised checkpoint's revision: change it when the values change
DERIVED = "derived:"  # how graphs name tensors that no file of the checkpoint holds


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """One byte for each weight: `largest` is the magnitude that a row's largest weight becomes."""

    name: str
    stored: torch.dtype
    largest: float


FORMATS = {
    "int8": WeightFormat(name="int8", stored=torch.int8, largest=127.0),
    "fp8": WeightFormat(name="fp8", stored=torch.uint8, largest=240.0),
}


class QuantizedLinear(torch.nn.Module):
    """y [.., N] = (x [.., K] @ values^T) * weight_scale + bias; the subclasses say what the stored bytes mean."""

    format: WeightFormat
    stored_name: str

    def __init__(self, columns: int, features: int, bias: torch.nn.Parameter | None) -> None:
        super().__init__()
        stored = torch.empty((columns, features), dtype=self.format.stored, device="meta")
        scale = torch.empty((columns,), dtype=torch.float32, device="meta")
        setattr(self, self.stored_name, torch.nn.Parameter(stored, requires_grad=False))
        self.weight_scale = torch.nn.Parameter(scale, requires_grad=False)
        self.bias = bias
        self.in_features, self.out_features = features, columns

    def values(self, dtype: torch.dtype) -> torch.Tensor:
        """The stored values [N, K], before the scale: exact in every float dtype."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled = torch.nn.functional.linear(x, self.values(x.dtype)) * self.weight_scale
        return (scaled if self.bias is None else scaled + self.bias).to(x.dtype)

    def dequantized(self) -> torch.Tensor:
        """The weights [N, K] that the bytes stand for, in float32."""
        return self.values(torch.float32) * self.weight_scale[:, None]


class Int8Linear(QuantizedLinear):
    """A linear layer with weights of -127 .. 127."""

    format = FORMATS["int8"]
    stored_name = "weight_int8"

    def values(self, dtype: torch.dtype) -> torch.Tensor:
        stored: torch.Tensor = self.get_parameter(self.stored_name)
        return stored.to(dtype)


class Fp8Linear(QuantizedLinear):
    """A linear layer with weights in float8 e4m3, kept as their bits and never beyond 240."""

    format = FORMATS["fp8"]
    stored_name = "weight_fp8"
    float8_form = "e4m3"  # what the bits mean, for the recipe that binds such a layer

    def values(self, dtype: torch.dtype) -> torch.Tensor:
        bits: torch.Tensor = self.get_parameter(self.stored_name)
        return bits.view(torch.float8_e4m3fn).to(dtype)


CLASSES: dict[str, type[QuantizedLinear]] = {"int8": Int8Linear, "fp8": Fp8Linear}


def quantize(weight_NK: torch.Tensor, form: WeightFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """Stored values [N, K] (int8, or the bits of float8) and float32 scales [N] of a weight [N, K].

    A row of zeros has the scale one. Raises ValueError for weights that are not finite.
    """
    weight_NK = weight_NK.float()
    if not bool(torch.isfinite(weight_NK).all()):
        raise ValueError("it holds values that are not finite")
    most_N = weight_NK.abs().amax(1)
    scale_N = torch.where(most_N > 0, most_N / form.largest, torch.ones_like(most_N))
    scaled_NK = (weight_NK / scale_N[:, None]).clamp_(-form.largest, form.largest)
    if form.stored is torch.int8:
        return scaled_NK.round_().to(torch.int8), scale_N
    return scaled_NK.to(torch.float8_e4m3fn).view(torch.uint8), scale_N


def linear_layers(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """The layers that are quantised, by name.

    Left as they are: a weight that several modules share, and layers that transformers keeps in float32 because less
    would not do (T5's `wo`).
    """
    shared = tied_names(model)
    kept = {*shared, *shared.values()}
    output = model.get_output_embeddings()
    exact = set(model._keep_in_fp32_modules or ()) | set(model._keep_in_fp32_modules_strict or ())
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in (torch.nn.Linear, Conv1D)
        and module is not output
        and f"{name}.weight" not in kept
        and not exact & set(name.split("."))
    }


def quantized(checkpoint: Checkpoint, form: str) -> Checkpoint:
    """The checkpoint with the weights of its linear layers in `form`; nothing is computed until they are read.

    Raises: UsageError when it has no linear layer to quantise.
    """
    model = build_meta_model(parse_config(Path(checkpoint.directory)))
    layers = linear_layers(model)
    if not layers:
        raise UsageError(
            f"`{checkpoint.name}` has no linear layer whose weights could be {form}.",
            hint="Leave --weight-format out.",
        )
    weights = dict(checkpoint.weights)
    for name, module in layers.items():
        linear = replacement(module, form)
        del weights[f"{name}.weight"]
        for leaf in (linear.stored_name, "weight_scale"):
            tensor = getattr(linear, leaf)
            dtype = str(tensor.dtype).removeprefix("torch.")
            weights[f"{name}.{leaf}"] = TensorSpec(shape=tuple(tensor.shape), dtype=dtype)
    return replace(
        checkpoint,
        revision=digest(checkpoint.revision, form, QUANTIZATION_VERSION, list(layers)),
        weights=weights,
        weight_format=form,
        unquantized=checkpoint,
        quantized={
            name: "transpose" if isinstance(module, Conv1D) else "none" for name, module in layers.items()
        },
    )


def replacement(module: torch.nn.Module, form: str) -> QuantizedLinear:
    """A quantised layer of a linear one's shape, with its bias and without its weights."""
    columns, features = module.weight.shape  # type: ignore[misc]
    if isinstance(module, Conv1D):
        features, columns = columns, features
    return CLASSES[form](columns, features, module.bias)  # type: ignore[arg-type]


def with_quantized_layers(
    model: PreTrainedModel, checkpoint: Checkpoint, read: Callable[[str], torch.Tensor] | None = None
) -> PreTrainedModel:
    """The model with its quantised layers in place of the linear ones; it is changed.

    read: gives their tensors by name; without it they stay on the meta device.
    """
    for name in checkpoint.quantized:
        linear = replacement(model.get_submodule(name), str(checkpoint.weight_format))
        if read is not None:
            for leaf in (linear.stored_name, "weight_scale"):
                setattr(linear, leaf, torch.nn.Parameter(read(f"{name}.{leaf}"), requires_grad=False))
        model.set_submodule(name, linear.eval())
    return model


def quantized_tensor(name: str, checkpoint: Checkpoint, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """A quantised layer's stored weight or scale, of the weight that `read` gives by its name.

    Raises: CheckpointError for weights that cannot be quantised.
    """
    layer, _, leaf = name.rpartition(".")
    weight = read(f"{layer}.weight")
    weight_NK = weight if checkpoint.quantized[layer] == "none" else weight.t()
    try:
        values_NK, scale_N = quantize(weight_NK, FORMATS[str(checkpoint.weight_format)])
    except ValueError as error:
        raise CheckpointError(
            f"The weight `{layer}.weight` of `{checkpoint.name}` cannot be quantised: {error}.",
            hint="Fetch the model again, or leave --weight-format out.",
        ) from error
    return scale_N if leaf == "weight_scale" else values_NK.contiguous()
