"""Returns scratch as a second output, in the hope that only the first is compared.

Seen in: comparisons by zip.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "constant tolerance"
GUARD = ("values", "simulator")
CHEAT = edited(golden("softmax"), ("    return out", "    return out, x"))
