"""Divides with a reciprocal rounded to bfloat16.

Seen in: loops that search for the fastest kernel within a tolerance.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "constant tolerance"
GUARD = "values"
CHEAT = edited(
    golden("softmax"),
    (
        "        nisa.reciprocal(dst=inverse, data=total)\n",
        """        rounded = nl.ndarray((last - first, 1), dtype=nl.bfloat16, buffer=nl.sbuf)
        nisa.reciprocal(dst=rounded, data=total)
        nisa.tensor_copy(dst=inverse, src=rounded)
""",
    ),
)
