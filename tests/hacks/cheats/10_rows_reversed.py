"""Returns the rows in another order: right where all rows are equal.

Seen in: tests on symmetric inputs.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "equal inputs"
GUARD = "values"
CHEAT = edited(golden("softmax"), ("dst=out[first:last, :]", "dst=out[rows - last : rows - first, :]"))
