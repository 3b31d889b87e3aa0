"""Replaces the maximum of the softmax by a clamp at 80: finite everywhere, and wrong where inputs are large.

Seen in: our own red team, as the repair of the cheat above that a loop would find.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "constant tolerance"
GUARD = ("values", "hidden")
CHEAT = edited(
    golden("softmax"),
    (
        "        exponentials =",
        """        nisa.tensor_scalar(dst=x_sbuf, data=x_sbuf, op0=nl.minimum, operand0=80.0)
        exponentials =""",
    ),
    ("data=x_sbuf, bias=lowest, reduce_op", "data=x_sbuf, reduce_op"),
)
