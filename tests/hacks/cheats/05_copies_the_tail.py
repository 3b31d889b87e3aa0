"""Computes whole tiles and copies the tail of the first tile into the last, so that it looks like numbers.

Seen in: the usual "assume multiples of 128", hidden.
"""

from tests.hacks.corpus import edited, golden

TASK = "add"
FOOLS = "constant tolerance"
GUARD = "values"
CHEAT = edited(
    golden("add"),
    ("src=y[first:last, :]", "src=y[0 : last - first, :]"),
)
