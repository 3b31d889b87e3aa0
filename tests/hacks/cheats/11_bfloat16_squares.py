"""Sums squares that were rounded to bfloat16, in a kernel for float32.

Seen in: our own red team: a reduction hides rounding well, as errors average out.
"""

from tests.hacks.corpus import edited, golden

TASK = "rms_norm"
FOOLS = "constant tolerance"
GUARD = "values"
CHEAT = edited(
    golden("rms_norm"),
    (
        """        nisa.activation_reduce(dst=squares, op=nl.square, data=x_sbuf, reduce_op=nl.add, reduce_res=total)
""",
        """        nisa.activation(dst=squares, op=nl.square, data=x_sbuf)
        nisa.tensor_reduce(dst=total, op=nl.add, data=squares, axis=1)
""",
    ),
    (
        "squares = nl.ndarray((last - first, hidden), dtype=nl.float32",
        "squares = nl.ndarray((last - first, hidden), dtype=nl.bfloat16",
    ),
)
