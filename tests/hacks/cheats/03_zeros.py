"""Returns zeros: 256 probabilities are all below an absolute tolerance of 0.01.

Seen in: KernelBench, issue 165; 4 of its 60 first tasks take zeros.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "small inputs"
GUARD = "values"
CHEAT = edited(
    golden("softmax"),
    (
        "nisa.tensor_scalar(dst=result, data=exponentials, op0=nl.multiply, operand0=inverse)",
        "nisa.memset(dst=result, value=0.0)",
    ),
)
