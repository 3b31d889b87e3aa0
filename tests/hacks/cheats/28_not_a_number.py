"""Fills the output with NaN: no comparison with it is true, so no error is above the limit.

Seen in: checks of the form `if error > limit: fail`.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "normalized error"
GUARD = ("values", "simulator")
CHEAT = edited(
    golden("softmax"),
    (
        "        nisa.dma_copy(dst=out",
        "        nisa.memset(dst=result, value=float('nan'))\n        nisa.dma_copy(dst=out",
    ),
)
