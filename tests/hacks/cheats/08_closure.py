"""Counts its calls in a closure around the kernel.

Seen in: our own red team.
"""

from tests.hacks.corpus import edited, golden

TASK = "add"
FOOLS = "same inputs again"
GUARD = "source"
CHEAT = edited(
    golden("add"),
    (
        "P = 128\n",
        """P = 128


def counter():
    count = [0]

    def step():
        count[0] += 1
        return count[0]

    return step


STEP = counter()
""",
    ),
    (
        "    rows, columns = x.shape\n",
        "    rows, columns = x.shape\n    if STEP() > 1000:\n        return x\n",
    ),
)
