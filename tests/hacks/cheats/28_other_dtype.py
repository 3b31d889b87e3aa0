"""Returns the right numbers in another dtype: half of the traffic.

Seen in: comparisons that convert both sides.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "constant tolerance"
GUARD = ("values", "simulator")
CHEAT = edited(
    golden("softmax"),
    ("out = nl.ndarray((rows, columns), dtype=x.dtype", "out = nl.ndarray((rows, columns), dtype=nl.float16"),
    (
        "result = nl.ndarray((last - first, columns), dtype=x.dtype",
        "result = nl.ndarray((last - first, columns), dtype=nl.float16",
    ),
)
