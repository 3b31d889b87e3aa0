"""Global response normalisation of ConvNeXt V2: channels compete by their norm over the image.

Matches modules without children that have two parameters of one shape, as long as the last axis of their 4-D input
[B, H, W, C]. Which of the two is the gain, and whether it is this normalisation at all, the numeric probe decides.
Any B, H and W; C up to 3072; float32 and bfloat16. Sizes: B = images, T = positions (H * W), C = channels.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

MOST_CHANNELS = 3072  # six banks of PSUM hold the sums of squares


def bind(call: Any) -> tuple[Binding, ...] | None:
    """Accept a module with two parameters over the last axis of its 4-D input, in both roles."""
    module = call.module
    if call.operation != "module" or module is None or any(module.children()) or len(call.inputs) != 1:
        return None
    shape = call.inputs[0].shape
    parameters = dict(module.named_parameters())
    if len(shape) != 4 or len(parameters) != 2 or shape[-1] > MOST_CHANNELS:
        return None
    if any(tensor.numel() != shape[-1] or tensor.shape[-1] != shape[-1] for tensor in parameters.values()):
        return None
    one, other = parameters
    return (_binding(one, other), _binding(other, one))


def _binding(gain: str, shift: str) -> Binding:
    return Binding(weights={"gain": WeightSource(name=gain), "shift": WeightSource(name=shift)})


def forward(operator: Any, weights: Any, attributes: Any, features: Any) -> Any:
    """Normalise [B, H, W, C] through the operator on [B, T, C]."""
    channels = features.shape[-1]
    rows = features.reshape(features.shape[0], -1, channels)
    return operator(rows, weights["gain"].reshape(channels), weights["shift"].reshape(channels)).reshape(
        features.shape
    )


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [B, T, C], gain and shift [C]."""
    channels = (sizes["C"],)
    return draw.normal((sizes["B"], sizes["T"], sizes["C"])), draw.normal(channels), draw.normal(channels)


def flops(*shapes: tuple[int, ...]) -> int:
    """TensorE sums, it multiplies nothing of the model's."""
    return 0


RECIPE = Recipe(
    name="global_response_norm",
    summary="Global response normalisation of images (ConvNeXt V2).",
    schema="(Tensor x, Tensor gain, Tensor shift) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(1,),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="T"),
    sizes={
        "B": Size(least=1, most=256),
        "T": Size(least=1, most=65536),
        "C": Size(least=1, most=MOST_CHANNELS),
    },
    cases=(
        Case(name="last stage", kind="ordinary", sizes={"B": 1, "T": 49, "C": 1280}),
        Case(name="two images", kind="ordinary", sizes={"B": 2, "T": 196, "C": 192}),
        Case(name="one position", kind="tail", sizes={"B": 2, "T": 1, "C": 65}),
        Case(name="one channel", kind="tail", sizes={"B": 1, "T": 130, "C": 1}),
        Case(name="partial tiles and banks", kind="tail", sizes={"B": 1, "T": 259, "C": 577}),
        Case(name="epsilon decides", kind="stress", sizes={"B": 1, "T": 16, "C": 64}, scale=1e-6),
        Case(name="one loud channel", kind="stress", sizes={"B": 1, "T": 16, "C": 64}, style="outliers"),
        Case(name="second stage", kind="large", sizes={"B": 1, "T": 784, "C": 704}),
        Case(name="too long to be kept in float32", kind="large", sizes={"B": 1, "T": 780, "C": 1800}),
    ),
)
