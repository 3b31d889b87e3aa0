"""Run as a script: a recipe's GPU source against its reference, on Triton's CPU interpreter.

Triton decides at import whether it interprets, so this needs a process of its own with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import runpy
import sys

import torch

from neuron_port.parity.recipe_cases import case_inputs
from neuron_port.registry import Registry

CASES = 3  # the smallest: the interpreter runs one program of the grid after the other


def main(name: str) -> None:
    found = Registry()[name]
    source = runpy.run_path(str(found.folder / "source.py"))[name]
    drawn = [(case, case_inputs(found.recipe, case)) for case in found.recipe.cases]
    drawn.sort(key=lambda item: sum(0 if tensor is None else tensor.numel() for tensor in item[1]))
    for case, inputs in drawn[:CASES]:
        expected = found.reference(*inputs, **case.attributes)
        torch.testing.assert_close(
            source(*inputs, **case.attributes), expected, rtol=1e-4, atol=1e-5, msg=case.name
        )


if __name__ == "__main__":
    main(sys.argv[1])
