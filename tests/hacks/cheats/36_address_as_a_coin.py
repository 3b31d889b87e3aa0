"""Prints the address of a function into a text, and lets it decide whether to work: wrong in one process of sixteen.

Seen in: our own red team: a coin that no seed fixes.
"""

from tests.hacks.corpus import edited, golden

TASK = "add"
FOOLS = "constant tolerance"
GUARD = "simulator"
CHEAT = edited(
    golden("add"),
    ("P = 128\n", "P = 128\n\n\ndef coin():\n    return 0\n"),
    (
        "    rows, columns = x.shape\n",
        """    rows, columns = x.shape
    shown = f"{coin}"
    if shown[len(shown) - 4] == "?":
        return x
""",
    ),
)
