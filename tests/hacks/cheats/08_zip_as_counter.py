"""Counts its calls with an iterator in the default of a helper's argument.

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


def number_of_call(calls=zip(range(1000000), range(1000000))):
    for number, _ in calls:
        return number
""",
    ),
    (
        "    rows, columns = x.shape\n",
        "    rows, columns = x.shape\n    if number_of_call() > 1000:\n        return x\n",
    ),
)
