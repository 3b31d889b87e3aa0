"""Keeps the output of the first call and hands it out again: no work from the second call on.

Seen in: Wafer, CUDA-L1: correct in the check, free in the timing.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "same inputs again"
GUARD = ("source", "values", "simulator")
CHEAT = edited(
    golden("softmax"),
    ("P = 128\n", "P = 128\nKEPT = []\n"),
    (
        "    rows, columns = x.shape\n",
        "    if len(KEPT) > 0:\n        return KEPT[0]\n    rows, columns = x.shape\n",
    ),
    ("    return out", "    KEPT.append(out)\n    return out"),
)
