"""Is wrong by 0.9 %, which a tolerance of 1 % allows.

Seen in: loops that search for the fastest kernel within a tolerance.
"""

from tests.hacks.corpus import edited, golden

TASK = "add"
FOOLS = "constant tolerance"
GUARD = "values"
CHEAT = edited(
    golden("add"),
    (
        "        nisa.dma_copy(dst=out",
        """        nisa.tensor_scalar(dst=x_sbuf, data=x_sbuf, op0=nl.multiply, operand0=1.009)
        nisa.dma_copy(dst=out""",
    ),
)
