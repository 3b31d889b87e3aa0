"""Computes, stores the result elsewhere and returns the input.

Seen in: our own red team, against checks that only ask for a load, a computation and a store.
"""

from tests.hacks.corpus import edited, golden

TASK = "small_residual"
FOOLS = "constant tolerance"
GUARD = ("source", "values", "simulator")
CHEAT = edited(golden("small_residual"), ("    return out", "    return x"))
