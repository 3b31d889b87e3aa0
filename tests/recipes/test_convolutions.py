"""What is special about convolutions: which module goes to which recipe, how much work is issued, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from neuron_port.match.probe import RELATIVE_LIMIT, probe
from neuron_port.registry import Registry
from neuron_port.simulator import load_kernel_source, run_kernel
from neuron_port.walk.calls import Call, plain_attributes

REGISTRY = Registry()
RECIPES = ("patch_embed", "conv1d", "conv2d", "depthwise_conv", "pool2d")


def module_call(module: nn.Module, *shape: int) -> Call:
    """The call that a model makes of `module` with one activation of `shape`."""
    return Call(
        name="layer",
        operation="module",
        module=module,
        owner=type(module).__name__,
        function=module,
        args=(torch.zeros(shape),),
        kwargs={},
        attributes=plain_attributes(module),
    )


def takers(call: Call, names: tuple[str, ...] = RECIPES) -> list[str]:
    """The recipes that bind the call and agree with it."""
    return [
        name
        for name in names
        for binding in REGISTRY[name].recipe.bindings(call)
        if max(probe(call, REGISTRY[name].recipe, REGISTRY[name].reference, binding).values())
        <= RELATIVE_LIMIT
    ]


def kernel(name: str):
    """The recipe's kernel, ready for the simulator."""
    return load_kernel_source(REGISTRY[name].kernel.source, name, f"{name}/kernel.py")


def weight_normed(module: nn.Module, axis: int) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(module, dim=axis)


@pytest.mark.parametrize(
    ("module", "shape", "taker"),
    [
        (nn.Conv2d(3, 8, 16, 16), (1, 3, 40, 48), "patch_embed"),
        (nn.Conv3d(3, 8, (2, 14, 14), (2, 14, 14), bias=False), (5, 3, 2, 14, 14), "patch_embed"),
        (nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4)), (2, 3, 5, 9, 8), "patch_embed"),
        (nn.Conv1d(8, 8, 2, 2), (2, 8, 21), "patch_embed"),
        (nn.Conv2d(8, 8, 1), (1, 8, 9, 9), "conv2d"),
        (nn.Conv2d(3, 8, 7, 2, 3, bias=False), (1, 3, 30, 31), "conv2d"),
        (nn.Conv2d(8, 8, (3, 5), padding="same", dilation=(1, 2)), (1, 8, 9, 12), "conv2d"),
        (nn.Conv2d(8, 16, 3, groups=8), (1, 8, 9, 9), "conv2d"),
        (nn.Conv2d(8, 8, 7, padding=3, groups=8), (1, 8, 9, 9), "depthwise_conv"),
        (nn.Conv1d(8, 8, 4, padding=3, groups=8), (2, 8, 20), "depthwise_conv"),
        (nn.Conv1d(8, 8, 3, padding=1), (2, 8, 20), "conv1d"),
        (weight_normed(nn.Conv1d(8, 8, 4, padding=2, groups=2), 2), (2, 8, 20), "conv1d"),
        (weight_normed(nn.Conv1d(8, 8, 3), 0), (2, 8, 20), "conv1d"),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (1, 8, 10, 9), "pool2d"),
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), (1, 8, 9, 9), "pool2d"),
        (nn.AdaptiveAvgPool2d(1), (1, 8, 9, 9), "pool2d"),
        (nn.AvgPool1d(2, 2), (1, 8, 9), "pool2d"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
def test_exactly_one_recipe_takes_it(module, shape, taker):
    """Each convolution or pooling goes to one recipe only, whatever its dimensions and parametrisation."""
    assert takers(module_call(module, *shape)) == [taker]


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), (1, 8, 9, 9)),
        (nn.Conv2d(8, 8, 2, padding="same"), (1, 8, 9, 9)),
        (nn.ConvTranspose2d(8, 8, 2, 2), (1, 8, 9, 9)),
        (nn.Conv1d(8, 8, 2, padding="same"), (1, 8, 9)),
        (nn.MaxPool2d(2, dilation=2), (1, 8, 9, 9)),
        (nn.AdaptiveAvgPool2d(2), (1, 8, 9, 9)),
        (nn.ReLU(), (1, 8, 9, 9)),
    ],
)
def test_no_recipe_takes_what_none_computes(module, shape):
    """Reflected padding, uneven padding, transposed convolution, dilated or uneven pooling are left to the compiler."""
    assert takers(module_call(module, *shape)) == []


def test_dilation_is_part_of_a_signature():
    """Two convolutions with equal shapes that differ in padding and dilation have different attributes."""
    near = plain_attributes(nn.Conv2d(4, 4, 3, padding=1))
    far = plain_attributes(nn.Conv2d(4, 4, 3, padding=2, dilation=2))
    assert near != far


def function_call(function, *args, **kwargs) -> Call:
    """The call that a model makes of a function of its file."""
    return Call(
        name="layer#function",
        operation="function",
        module=None,
        owner="Mixer",
        function=function,
        args=args,
        kwargs=kwargs,
        attributes={},
    )


def causal(x, weight, bias=None, activation=None):
    out = nn.functional.conv1d(
        x, weight.unsqueeze(1), bias, padding=weight.shape[1] - 1, groups=weight.shape[0]
    )
    out = out[..., : x.shape[-1]]
    return nn.functional.silu(out) if activation == "silu" else out


def update(x, state, weight, bias=None, activation=None):
    recent = torch.cat((state, x), dim=-1)
    state.copy_(recent[..., 1:])
    out = causal(recent, weight, bias)[..., -1:]
    return nn.functional.silu(out) if activation == "silu" else out


@pytest.mark.parametrize("activation", [None, "silu"])
def test_causal_convolution_is_taken(activation):
    """A causal depthwise convolution is taken with the activation that its call names."""
    call = function_call(causal, torch.zeros(2, 8, 9), torch.zeros(8, 4), torch.zeros(8), activation)
    assert takers(call, ("causal_conv1d", "causal_conv1d_update")) == ["causal_conv1d"]


def test_convolution_that_looks_ahead_is_not_taken():
    """The same call of a function that centres its kernel is refused by the probe."""

    def centred(x, weight, bias=None):
        return nn.functional.conv1d(x, weight.unsqueeze(1), bias, padding=1, groups=weight.shape[0])

    call = function_call(centred, torch.zeros(2, 8, 9), torch.zeros(8, 3))
    assert takers(call, ("causal_conv1d", "causal_conv1d_update")) == []


@pytest.mark.parametrize("length", [3, 4, 6])
def test_update_is_taken_with_its_state(length):
    """One step is taken for states of K - 1 elements and more, and leaves the same state in its argument."""
    call = function_call(
        update, torch.zeros(2, 8, 1), torch.zeros(2, 8, length), torch.zeros(8, 4), activation="silu"
    )
    assert takers(call, ("causal_conv1d", "causal_conv1d_update")) == ["causal_conv1d_update"]


def matmuls(name: str, *arrays: np.ndarray | None, **attributes: int) -> int:
    run = run_kernel(kernel(name), *arrays, target="inf2", **attributes)
    return sum(item.opcode == "nc_matmul" for item in run.trace.instructions)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_copies_do_the_work_of_several_taps():
    """Of 9 taps, 3 channels need one product, 32 channels three, and 128 channels nine."""
    geometry = {"stride_y": 1, "stride_x": 1, "padding_y": 1, "padding_x": 1}
    products = [
        matmuls("conv2d", zeros(1, channels, 8, 8), zeros(channels, 3, 3, 16), **geometry)
        for channels in (3, 32, 128)
    ]
    assert products == [1, 3, 9]


def test_small_images_share_products():
    """Eight images of 7 x 7 pixels fit one product of 512 columns."""
    assert matmuls("conv2d", zeros(8, 128, 7, 7), zeros(128, 1, 1, 128)) == 1


def test_shifted_copies_halve_the_products_of_a_patch():
    """Patches of 16 x 16 in three colours take 8 products and not 16, for each 512 features."""
    assert matmuls("patch_embed", zeros(1, 3, 32, 32), zeros(3, 16, 16, 512)) == 8


def test_patch_that_does_not_fit_is_not_bound():
    """A patch of 3 x 128 x 128 pixels would need more SBUF than there is: bind leaves it to the compiler."""
    recipe = REGISTRY["patch_embed"].recipe
    assert recipe.bindings(module_call(nn.Conv2d(3, 4, 32, 32), 1, 3, 64, 64))
    assert not recipe.bindings(module_call(nn.Conv2d(3, 4, 128, 128), 1, 3, 256, 256))
