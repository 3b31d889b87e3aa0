"""Lowering: torch.export program -> HloModuleProto bytes -> lint, and execution on XLA-CPU.

    decompose / inline_references    bring a program into core ATen, kernels kept or inlined; what HLO or Neuron lacks
                                     is written out (rewrites/, complex_numbers)
    program_inputs                   which placeholders the graph will have as parameters
    emit                             the bytes
    read_module                      the bytes as records, without XLA
    lint                             what neuronx-cc would say, as far as its documentation tells
    XlaExecutable                    the bytes run on the CPU
    ParallelExecutable               the bytes run on several CPU devices, one a rank

Names load on first use, so that reading a module needs no torch and emitting one needs no jaxlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuron_port.lower.decomposition import decompose as decompose
    from neuron_port.lower.decomposition import inline_references as inline_references
    from neuron_port.lower.emitter import KernelCall as KernelCall
    from neuron_port.lower.emitter import emit as emit
    from neuron_port.lower.execution import XlaExecutable as XlaExecutable
    from neuron_port.lower.interface import ProgramInput as ProgramInput
    from neuron_port.lower.interface import program_inputs as program_inputs
    from neuron_port.lower.linting import LintReport as LintReport
    from neuron_port.lower.linting import lint as lint
    from neuron_port.lower.module import Module as Module
    from neuron_port.lower.module import read_module as read_module
    from neuron_port.lower.parallel_execution import ParallelExecutable as ParallelExecutable

_HOMES = {
    "KernelCall": "emitter",
    "LintReport": "linting",
    "Module": "module",
    "ParallelExecutable": "parallel_execution",
    "ProgramInput": "interface",
    "XlaExecutable": "execution",
    "decompose": "decomposition",
    "emit": "emitter",
    "inline_references": "decomposition",
    "lint": "linting",
    "program_inputs": "interface",
    "read_module": "module",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
