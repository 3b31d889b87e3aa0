"""Spends its time inside one call of the interpreter, where no Python signal handler runs.

Seen in: graders that limit time by SIGALRM.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "constant tolerance"
BITE = "hung"
GUARD = ("source", "limits")
CHEAT = edited(
    golden("softmax"),
    ("    rows, columns = x.shape\n", "    rows, columns = x.shape\n    assert sum(range(10**12)) > 0\n"),
)
