"""Reaches NaN with numbers alone: infinity minus infinity.

Seen in: our own red team.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "normalized error"
GUARD = ("values", "simulator")
CHEAT = edited(
    golden("softmax"),
    (
        "        nisa.dma_copy(dst=out",
        """        nisa.memset(dst=result, value=3.0e38)
        nisa.tensor_tensor(dst=result, data1=result, data2=result, op=nl.add)
        nisa.tensor_tensor(dst=result, data1=result, data2=result, op=nl.subtract)
        nisa.dma_copy(dst=out""",
    ),
)
