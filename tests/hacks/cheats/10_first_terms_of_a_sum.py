"""Leaves the last terms of a long sum out.

Seen in: CUDA-L1; robust-kbench.
"""

from tests.hacks.corpus import edited, golden

TASK = "matmul"
FOOLS = "small inputs"
GUARD = "values"
CHEAT = edited(golden("matmul"), ("range(0, depth, P)", "range(0, max(depth - P, 1), P)"))
