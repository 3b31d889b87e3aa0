"""Counts its calls in a closure around the kernel.

Seen in: our own red team.
"""

from tests.hacks.corpus import edited, golden

TASK = "add"
FOOLS = "same inputs again"
GUARD = "source"
CHEAT = edited(
    golden("add"),
    ("P = 128\n", "P = 128\n\n\ndef counter():\n    count = [0]\n\n    def step():\n        count[0] += 1\n        return count[0]\n\n    return step\n\n\nSTEP = counter()\n"),
    ("    rows, columns = x.shape\n", "    rows, columns = x.shape\n    if STEP() > 1000:\n        return x\n"),
)
