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
    ("    rows, columns = x.shape\n", "    rows, columns = x.shape\n    hoard = (rows, columns)\n    for doubling in range(60):\n        hoard = hoard + hoard\n"),
)
