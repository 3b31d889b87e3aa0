"""Returns the first of two outputs only.

Seen in: comparisons by zip.
"""

from tests.hacks.corpus import edited, golden

TASK = "extremes"
FOOLS = "constant tolerance"
GUARD = ("values", "simulator")
CHEAT = edited(golden("extremes"), ("    return largest, smallest", "    return largest"))
