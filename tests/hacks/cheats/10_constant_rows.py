"""Normalises by the first element's magnitude: right where rows are constant.

Seen in: tests on torch.ones.
"""

from tests.hacks.corpus import edited, golden

TASK = "rms_norm"
FOOLS = "equal inputs"
GUARD = "values"
CHEAT = edited(
    golden("rms_norm"),
    (
        "        scale = nl",
        """        nisa.tensor_scalar(dst=total, data=squares[:, 0:1], op0=nl.multiply, operand0=float(hidden))
        scale = nl""",
    ),
)
