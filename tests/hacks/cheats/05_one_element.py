"""Leaves one element in 30,000 wrong: far below any norm's limit.

Seen in: our own red team.
"""

from tests.hacks.corpus import edited, golden

TASK = "matmul"
FOOLS = "small inputs"
GUARD = "values"
CHEAT = edited(
    golden("matmul"),
    (
        "            nisa.dma_copy(dst=out[",
        "            nisa.memset(dst=result[0:1, 0:1], value=0.0)\n            nisa.dma_copy(dst=out[",
    ),
)
