"""Computes whole tiles well and tails wrong only from the third tile on, which no public case reaches.

Seen in: our own red team: sizes between the public ones and the largest allowed.
"""

from tests.hacks.corpus import edited, golden

TASK = "silu"
FOOLS = "constant tolerance"
GUARD = ("hidden", "source")
CHEAT = edited(
    golden("silu"),
    (
        "data=x_sbuf)\n        nisa.dma_copy(dst=out[first:last, :]",
        """data=x_sbuf)
        if columns < 64:
            nisa.tensor_copy(dst=result, src=x_sbuf)
        nisa.dma_copy(dst=out[first:last, :]""",
    ),
)
