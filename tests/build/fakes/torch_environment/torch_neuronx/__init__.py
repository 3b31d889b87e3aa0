"""A stand-in for `torch_neuronx`, strict where its documents are; what it traces runs on the CPU.

FAKE_TORCH_NEURONX_ERROR (a number) is added to the first output; FAKE_TORCH_NEURONX_LOG names a file for the arguments.
"""

import json
import os
import warnings
from pathlib import Path
from types import MappingProxyType

import torch

TARGETS = ("inf2", "trn1", "trn1n", "trn2")
# Set by trace itself: a caller that names them too would be refused by neuronx-cc.
OWN = ("compile", "--framework", "--output", "--logfile")


class _Traced(torch.nn.Module):
    """The function with what the device does to it: aliased outputs are written over their state, and stay there."""

    def __init__(self, func, states, aliases, error):
        super().__init__()
        self.func, self.aliases, self.error = func, aliases, error
        self.states = torch.nn.ParameterList(states)

    def forward(self, *inputs):
        results = self.func(*inputs)
        results = list(results) if isinstance(results, tuple) else [results]
        for state, index in zip(self.states, self.aliases):
            state.copy_(results[index])
        results[0] = results[0] + self.error
        return tuple(result for index, result in enumerate(results) if index not in self.aliases)


def trace(func, example_inputs, *_, input_output_aliases=MappingProxyType({}), compiler_workdir=None, compiler_args=None,
          partitioner_config=None, inline_weights_to_neff=True, cpu_backend=False):  # fmt: skip
    if not callable(func) or (isinstance(func, torch.nn.Module) and func.training):
        raise TypeError("func must be a function or a module in eval mode")
    tensors = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else example_inputs
    if not isinstance(tensors, tuple) or not all(isinstance(item, torch.Tensor) for item in tensors):
        raise TypeError("example_inputs must be a tensor or a tuple of tensors")
    arguments = compiler_args.split() if isinstance(compiler_args, str) else list(compiler_args or [])
    if not all(isinstance(item, str) for item in arguments):
        raise TypeError("compiler_args must be a string or a list of strings")
    if any(name in arguments for name in OWN):
        raise ValueError(f"compiler_args names what trace sets itself: {arguments}")
    if cpu_backend and (
        "--target" not in arguments or arguments[arguments.index("--target") + 1] not in TARGETS
    ):
        raise ValueError("cpu_backend needs compiler_args with --target")
    if not isinstance(input_output_aliases, (dict, MappingProxyType)):
        raise TypeError("input_output_aliases must be a dictionary of tensors")
    known = [*tensors, *(func.parameters() if isinstance(func, torch.nn.Module) else ())]
    outputs = func(*tensors)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for state, index in input_output_aliases.items():
        if not any(state is tensor for tensor in known):
            raise ValueError("an aliased tensor is neither an input nor a parameter of func")
        if outputs[index].shape != state.shape or outputs[index].dtype != state.dtype:
            raise ValueError(f"output {index} {outputs[index].shape} cannot be written over {state.shape}")
    if log := os.environ.get("FAKE_TORCH_NEURONX_LOG"):
        with Path(log).open("a") as file:
            said = {
                "compiler_args": arguments, "cpu_backend": cpu_backend, "workdir": compiler_workdir,
                "aliases": list(input_output_aliases.values()), "inline_weights_to_neff": inline_weights_to_neff,
                "inputs": [list(tensor.shape) for tensor in tensors],
            }  # fmt: skip
            file.write(json.dumps(said) + "\n")
    if words := os.environ.get("FAKE_TORCH_NEURONX_REFUSES"):
        raise RuntimeError(f"neuronx-cc failed with 70: [{words}] something was refused")
    error = float(os.environ.get("FAKE_TORCH_NEURONX_ERROR", "0"))
    wrapped = _Traced(func, list(input_output_aliases), list(input_output_aliases.values()), error).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.jit.trace(wrapped, tensors, check_trace=False)


def move_trace_to_device(trace, device_id):
    if not isinstance(trace, torch.jit.ScriptModule) or not isinstance(device_id, int):
        raise TypeError("move_trace_to_device takes a traced module and a number")
