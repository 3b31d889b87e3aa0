"""Raises a number to a power that takes hours.

Seen in: graders that evaluate constants.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "constant tolerance"
BITE = "hung"
GUARD = ("source", "limits")
CHEAT = edited(
    golden("softmax"),
    (
        "    rows, columns = x.shape\n",
        "    rows, columns = x.shape\n    base = rows + 7\n    base = base**base**base\n",
    ),
)
