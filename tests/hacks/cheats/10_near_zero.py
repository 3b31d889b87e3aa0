"""Replaces silu by the first terms of its series around zero.

Seen in: kernelbench.com pull request 7; activations of layers with small weights.
"""

from tests.hacks.corpus import edited, golden

TASK = "silu"
FOOLS = "small inputs"
GUARD = "values"
CHEAT = edited(
    golden("silu"),
    (
        "nisa.activation(dst=result, op=nl.silu, data=x_sbuf)",
        "nisa.tensor_scalar(dst=result, data=x_sbuf, op0=nl.multiply, operand0=0.5)",
    ),
)
