"""Returns the mean that every row of a softmax has, 1 / C.

Seen in: KernelBench, issue 165, for reductions over many elements.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "equal inputs"
GUARD = "values"
CHEAT = edited(
    golden("softmax"),
    (
        "nisa.tensor_scalar(dst=result, data=exponentials, op0=nl.multiply, operand0=inverse)",
        "nisa.memset(dst=result, value=1.0 / columns)",
    ),
)
