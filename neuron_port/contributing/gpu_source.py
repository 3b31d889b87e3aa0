"""Run as a program: a recipe's GPU source against its reference, on Triton's CPU interpreter.

Triton decides at import whether it interprets, so this needs a process of its own with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from neuron_port.contributing.records import Check, Say, judged, not_run
from neuron_port.registry import RegisteredRecipe, load_recipe

CASES = 3  # the smallest: the interpreter runs one program of the grid after the other
NAME = "gpu source"


def check_gpu_source(found: RegisteredRecipe, say: Say) -> Check:
    """source.py computes what reference.py does, on the recipe's smallest cases."""
    if "triton" not in found.source_text("source.py"):
        return not_run(NAME, "source.py has no Triton kernel")
    if importlib.util.find_spec("triton") is None:
        return not_run(NAME, "triton is not installed (it is published for Linux only)")
    say("on Triton's interpreter")
    finished = subprocess.run(
        [sys.executable, "-m", __name__, str(found.folder.resolve())],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    problems = [] if finished.returncode == 0 else [_last_line(finished.stderr)]
    return judged(
        NAME, f"source.py computes the same as reference.py on the {CASES} smallest cases", problems
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "source.py ended without a word"


def main(folder: Path) -> None:
    """Compare, and raise AssertionError with the case's name when the two differ."""
    import runpy

    import torch

    from neuron_port.parity.recipe_cases import case_inputs

    found = load_recipe(folder)
    source = runpy.run_path(str(folder / "source.py"))[found.name]
    drawn = [(case, case_inputs(found.recipe, case)) for case in found.recipe.cases]
    drawn.sort(key=lambda item: sum(tensor.numel() for tensor in item[1] if tensor is not None))
    for case, inputs in drawn[:CASES]:
        expected = found.reference(*inputs, **case.attributes)
        result = source(*inputs, **case.attributes)
        try:
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
        except AssertionError as error:
            raise AssertionError(f"case `{case.name}`: {' '.join(str(error).split())}") from error


if __name__ == "__main__":
    main(Path(sys.argv[1]))
