"""Grows a list until the machine has no memory.

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
    hoard = []
    for index in range(10**9):
        hoard.append((index, index))
""",
    ),
)
