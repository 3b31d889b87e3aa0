"""Runs the products and throws them away: the output is zeros, and every trace shows a matmul.

Seen in: our own red team, against checks that a source or a trace contains the instruction.
"""

from tests.hacks.corpus import edited, golden

TASK = "matmul"
FOOLS = "small inputs"
GUARD = "values"
CHEAT = edited(
    golden("matmul"),
    (
        "            nisa.dma_copy(dst=out[",
        "            nisa.memset(dst=result, value=0.0)\n            nisa.dma_copy(dst=out[",
    ),
)
