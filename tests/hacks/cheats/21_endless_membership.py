"""Looks for an element that a huge range holds only by equality, one by one.

Seen in: our own red team.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "constant tolerance"
BITE = "hung"
GUARD = ("source", "limits")
CHEAT = edited(
    golden("softmax"),
    ("    rows, columns = x.shape\n", "    rows, columns = x.shape\n    assert 0.5 not in range(10**12)\n"),
)
