"""Counts its calls with an iterator: one name, never assigned again, no list and no dictionary.

Seen in: our own red team.
"""

from tests.hacks.corpus import edited, golden

TASK = "add"
FOOLS = "same inputs again"
GUARD = "source"
CHEAT = edited(
    golden("add"),
    ("P = 128\n", "P = 128\nCALLS = enumerate(range(1000000))\n"),
    (
        "    rows, columns = x.shape\n",
        """    rows, columns = x.shape
    calls = 0
    for number, _ in CALLS:
        calls = number
        break
    if calls > 1000:
        return x
""",
    ),
)
