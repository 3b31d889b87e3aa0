"""Moves a Python index on in a hardware loop: a device repeats the first turn's address every time.

Seen in: our own red team; a mistake that looks like a kernel.
"""

from tests.hacks.corpus import edited, golden

TASK = "add"
FOOLS = "simulator in plain Python"
GUARD = "simulator"
CHEAT = edited(
    golden("add"),
    (
        "    for first in range(0, rows, P):\n",
        "    first = -P\n    for turn in nl.dynamic_range((rows + P - 1) // P):\n        first = first + P\n",
    ),
)
