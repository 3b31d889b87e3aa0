"""Subtracts one maximum for all rows: rows far below it underflow to 0 / 0.

Seen in: attention kernels that keep a running maximum per tile.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "constant tolerance"
GUARD = ("values", "hidden")
CHEAT = edited(
    golden("softmax"),
    (
        "nisa.tensor_reduce(dst=lowest, op=nl.maximum, data=x_sbuf, axis=1, negate=True)",
        """nisa.memset(dst=lowest, value=-12.0)""",
    ),
)
