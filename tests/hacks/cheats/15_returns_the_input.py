"""Returns the input itself: no instruction at all.

Seen in: Wafer; robust-kbench.
"""

TASK = "small_residual"
FOOLS = "constant tolerance"
GUARD = ("source", "values", "simulator")
CHEAT = """
import nki


@nki.jit
def small_residual(x, alpha):
    return x
"""
