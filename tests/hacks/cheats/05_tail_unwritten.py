"""Leaves the rows of the tail unwritten.

Seen in: the usual "assume multiples of 128".
"""

from tests.hacks.corpus import edited, golden

TASK = "add"
FOOLS = "constant tolerance"
GUARD = "simulator"
CHEAT = edited(golden("add"), ("range(0, rows, P)", "range(0, rows - P + 1, P)"))
