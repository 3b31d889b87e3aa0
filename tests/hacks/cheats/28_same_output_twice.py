"""Returns one buffer as both outputs.

Seen in: tests on torch.ones.
"""

from tests.hacks.corpus import edited, golden

TASK = "extremes"
FOOLS = "equal inputs"
GUARD = "values"
CHEAT = edited(golden("extremes"), ("    return largest, smallest", "    return largest, largest"))
