"""Copies its input where the output is nearly the same.

Seen in: Wafer; robust-kbench counts 63 such tasks in KernelBench's second level.
"""

from tests.hacks.corpus import edited, golden

TASK = "small_residual"
FOOLS = "constant tolerance"
GUARD = "values"
CHEAT = edited(golden("small_residual"), ("operand0=alpha", "operand0=0.0"))
