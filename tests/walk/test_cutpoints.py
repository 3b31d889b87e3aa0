"""Where calls are cut: functions of a modeling file, products, softmax and sums of modules with children."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig, PreTrainedModel

from neuron_port.walk.calls import Call
from neuron_port.walk.cutpoints import intercept, operation_of_function
from neuron_port.walk.program import Program
from neuron_port.walk.walker import walk

WIDTH, TOKENS = 6, 4


def causal_conv1d_fn(x: torch.Tensor, kernel: float) -> torch.Tensor:
    """Stands for a function of a modeling file; the product inside is the function's own business."""
    return torch.matmul(x, torch.eye(WIDTH, device=x.device)) * kernel


class Mixer(torch.nn.Module):
    """Has a child, a parameter that its own code reads, and every kind of cut point."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(WIDTH, WIDTH)
        self.dropout = torch.nn.Dropout(0.5)
        self.scale = torch.nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dropout(self.linear(x))
        shares = torch.softmax(y @ y.transpose(1, 2), dim=-1)
        mixed = torch.matmul(shares, y) * self.scale
        return x + causal_conv1d_fn(mixed, kernel=0.5)


class Model(PreTrainedModel):
    """The mixer, in a transformers model."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.mixer = Mixer()
        self.unused = torch.nn.Linear(WIDTH, WIDTH)
        self.post_init()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixer(x)


class Step(torch.nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, inputs: tuple[torch.Tensor, ...], states: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        return (self.model(*inputs),)


def walked() -> tuple[dict[str, str], frozenset[str]]:
    """Operation of every layer by name, and the parameters that glue touched."""
    model = Model(PretrainedConfig()).eval()
    program = Program(
        phase="forward",
        step=Step(model),
        inputs={"x": torch.randn(1, TOKENS, WIDTH)},
        outputs=("y",),
        batch=1,
        sequence_length=TOKENS,
    )
    found = walk(model, "own", program)
    return {layer.name: layer.operation for layer in found.graph.layers}, found.touched


def test_every_kind_of_call_is_a_layer() -> None:
    """Modules by their name, functions by theirs, products, softmax and sums numbered within their module."""
    layers, _ = walked()
    assert layers == {
        "mixer": "module",
        "mixer.linear": "module",
        "mixer#matmul.0": "matmul",
        "mixer#softmax.0": "softmax",
        "mixer#matmul.1": "matmul",
        "mixer#causal_conv1d_fn": "function",
        "mixer#add.0": "add",
    }


def test_parameters_that_glue_reads_are_reported() -> None:
    """A parameter that a module's own code reads is consumed; one that nothing reads is not."""
    _, touched = walked()
    assert touched == {"mixer.scale"}


def test_dropout_is_no_layer() -> None:
    """A module that gives back its input computes nothing."""
    assert "mixer.dropout" not in walked()[0]


def test_attributes_tell_how_a_call_was_made() -> None:
    """Scalar arguments of a cut function or torch call are its attributes: they decide what it computes."""
    calls: dict[str, Call] = {}

    def keep(call: Call) -> object:
        calls[call.name] = call
        return call.run()

    model = Model(PretrainedConfig()).eval()
    with torch.no_grad(), intercept(model, keep):
        model(torch.randn(1, TOKENS, WIDTH))
    assert calls["mixer#causal_conv1d_fn"].attributes == {"function": "causal_conv1d_fn", "kernel": 0.5}
    assert calls["mixer#softmax.0"].attributes == {"function": "softmax", "dim": -1}
    assert calls["mixer#matmul.1"].owner == "Mixer"
    assert causal_conv1d_fn.__module__ == __name__  # the file's function is its own again


def test_functions_are_known_by_what_their_names_say() -> None:
    """Rotary embeddings and scans are layers; helpers, loaders of CUDA code and classes are not."""
    assert operation_of_function("apply_rotary_pos_emb", causal_conv1d_fn) == "rope"
    assert operation_of_function("apply_multimodal_rotary_pos_emb", causal_conv1d_fn) == "rope"
    assert operation_of_function("torch_chunk_gated_delta_rule", causal_conv1d_fn) == "function"
    assert operation_of_function("mamba_selective_scan", causal_conv1d_fn) == "function"
    assert operation_of_function("rotate_half", causal_conv1d_fn) is None
    assert operation_of_function("load_wkv_cuda_kernel", causal_conv1d_fn) is None
    assert operation_of_function("apply_rotary", Mixer) is None
