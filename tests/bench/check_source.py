"""Run as a script: a task's GPU source against its reference, on Triton's CPU interpreter.

Triton decides at import whether it interprets, so this needs a process of its own with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import runpy
import sys

import torch

from neuron_port.bench.suite import load_suite
from neuron_port.parity.draw import Draw

CASES = 3  # the smallest: the interpreter runs one program of the grid after the other


def main(*names: str) -> None:
    for found in load_suite(names):
        source = runpy.run_path(str(found.folder / "source.py"))[found.name]
        drawn = []
        for case in found.task.cases:
            arrays = found.task.inputs(case.sizes, Draw(7, case.scale, case.style))
            drawn.append((case, tuple(torch.from_numpy(array) for array in arrays)))
        drawn.sort(key=lambda item: sum(tensor.numel() for tensor in item[1]))
        for case, inputs in drawn[:CASES]:
            torch.testing.assert_close(
                source(*inputs, **case.attributes),
                found.task.reference(*inputs, **case.attributes),
                rtol=1e-4,
                atol=1e-5,
                msg=lambda text, name=f"{found.name}, {case.name}": f"{name}: {text}",
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
