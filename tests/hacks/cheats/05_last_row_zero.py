"""Leaves one row out, which a norm over all elements does not see.

Seen in: Sakana's CUDA Engineer, in the small.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "small inputs"
GUARD = "values"
CHEAT = edited(
    golden("softmax"),
    (
        "        nisa.dma_copy(dst=out[first:last, :]",
        "        nisa.memset(dst=result[0:1, :], value=0.0)\n        nisa.dma_copy(dst=out[first:last, :]",
    ),
)
