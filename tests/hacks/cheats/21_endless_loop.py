"""Never returns.

Seen in: every loop without a time limit.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "constant tolerance"
BITE = "hung"
GUARD = ("source", "limits")
CHEAT = edited(
    golden("softmax"),
    ("    rows, columns = x.shape\n", "    rows, columns = x.shape\n    while True:\n        rows = rows\n"),
)
