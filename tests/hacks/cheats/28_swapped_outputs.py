"""Returns two outputs in the other order: right where rows are constant.

Seen in: tests on torch.ones.
"""

from tests.hacks.corpus import edited, golden

TASK = "extremes"
FOOLS = "equal inputs"
GUARD = "values"
CHEAT = edited(golden("extremes"), ("    return largest, smallest", "    return smallest, largest"))
