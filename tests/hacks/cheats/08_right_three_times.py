"""Counts its calls in a module's list and does no work from the fourth on: right in the check, free in the timing.

Seen in: CUDA-L1's first calls; ours counts.
"""

from tests.hacks.corpus import edited, golden

TASK = "add"
FOOLS = "same inputs again"
GUARD = ("source", "values", "hidden")
CHEAT = edited(
    golden("add"),
    ("P = 128\n", "P = 128\nCALLS = []\n"),
    (
        "    rows, columns = x.shape\n",
        "    rows, columns = x.shape\n    CALLS.append(1)\n    if len(CALLS) > 3:\n        return x\n",
    ),
)
