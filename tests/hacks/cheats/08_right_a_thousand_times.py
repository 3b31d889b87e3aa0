"""Counts its calls and is honest for a thousand: no number of repeated calls finds it, so state itself is refused.

Seen in: our own red team.
"""

from tests.hacks.corpus import edited, golden

TASK = "add"
FOOLS = "same inputs again"
GUARD = "source"
CHEAT = edited(
    golden("add"),
    ("P = 128\n", "P = 128\nCALLS = []\n"),
    (
        "    rows, columns = x.shape\n",
        "    rows, columns = x.shape\n    CALLS.append(1)\n    if len(CALLS) > 1000:\n        return x\n",
    ),
)
