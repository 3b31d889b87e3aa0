"""Doubles a tuple sixty times.

Seen in: every loop without a memory limit.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "constant tolerance"
BITE = "took memory"
GUARD = ("source", "limits")
CHEAT = edited(
    golden("softmax"),
    (
        "    rows, columns = x.shape\n",
        """    rows, columns = x.shape
    hoard = (rows, columns)
    for doubling in range(60):
        hoard = hoard + hoard
""",
    ),
)
