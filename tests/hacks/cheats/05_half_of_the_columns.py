"""Computes half of the columns of a product, where the other half is below the tolerance.

Seen in: Sakana's CUDA Engineer, CUDA-L1.
"""

from tests.hacks.corpus import edited, golden

TASK = "matmul"
FOOLS = "small inputs"
GUARD = "values"
CHEAT = edited(
    golden("matmul"),
    (
        "            nisa.dma_copy(dst=out[",
        """            nisa.memset(dst=result[:, (right - left) // 2 : right - left], value=0.0)
            nisa.dma_copy(dst=out[""",
    ),
)
