"""Run as a script: the GPU sources of recipes against their references, on Triton's CPU interpreter.

Triton decides at import whether it interprets, so this needs a process of its own with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import runpy
import sys
import traceback
from collections.abc import Sequence

import torch

from neuron_port.parity.recipe_cases import case_inputs
from neuron_port.registry import RegisteredRecipe, Registry

CASES = 3  # the smallest: the interpreter runs one program of the grid after the other


def check(found: RegisteredRecipe) -> None:
    name = found.name
    source = runpy.run_path(str(found.folder / "source.py"))[name]
    drawn = [(case, case_inputs(found.recipe, case)) for case in found.recipe.cases]
    drawn.sort(key=lambda item: sum(0 if tensor is None else tensor.numel() for tensor in item[1]))
    for case, inputs in drawn[:CASES]:
        expected = found.reference(*inputs, **case.attributes)
        torch.testing.assert_close(
            source(*inputs, **case.attributes), expected, rtol=1e-4, atol=1e-5, msg=case.name
        )


def main(names: Sequence[str]) -> int:
    """Check each recipe; print the traceback of those that differ. Returns how many do."""
    registry = Registry()
    failures = 0
    for name in names:
        try:
            check(registry[name])
        except Exception:
            failures += 1
            print(f"{name}:\n{traceback.format_exc()}", file=sys.stderr)
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
