"""Draws random numbers as small as the answers.

Seen in: tests with constant tolerances.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "small inputs"
GUARD = ("values", "source", "simulator")
CHEAT = edited(
    golden("softmax"),
    (
        "        nisa.dma_copy(dst=out",
        """        noise = nl.rand((last - first, columns), dtype=nl.float32)
        nisa.tensor_scalar(dst=result, data=noise, op0=nl.multiply, operand0=2.0 / columns)
        nisa.dma_copy(dst=out""",
    ),
)
