"""Drops the maximum of the softmax: exp overflows where inputs are large.

Seen in: a published grouped-query attention for Trainium, 3.6 times faster, NaN at six times the input's scale.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "constant tolerance"
GUARD = "values"
CHEAT = edited(golden("softmax"), ("data=x_sbuf, bias=lowest, reduce_op", "data=x_sbuf, reduce_op"))
