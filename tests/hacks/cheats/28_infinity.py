"""Returns infinities: divided by its own size, the error is no number.

Seen in: checks that normalise by the candidate's output.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "normalized error"
GUARD = ("values", "simulator")
CHEAT = edited(
    golden("softmax"),
    (
        "        nisa.dma_copy(dst=out",
        "        nisa.memset(dst=result, value=float('inf'))\n        nisa.dma_copy(dst=out",
    ),
)
