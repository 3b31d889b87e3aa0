"""Sums only the last eight terms of a decaying recurrence.

Seen in: kernelbench.com pull request 7, for state-space layers.
"""

from tests.hacks.corpus import edited, golden

TASK = "decay_scan"
FOOLS = "constant tolerance"
GUARD = "values"
CHEAT = edited(
    golden("decay_scan"),
    (
        """        nisa.tensor_tensor_scan(
            dst=result, data0=factors, data1=x_sbuf, initial=0.0, op0=nl.multiply, op1=nl.add
        )
""",
        """        nisa.tensor_copy(dst=result, src=x_sbuf)
        for lag in range(1, min(9, columns)):
            nisa.scalar_tensor_tensor(
                dst=result[:, lag:columns],
                data=x_sbuf[:, 0 : columns - lag],
                op0=nl.multiply,
                operand0=decay**lag,
                op1=nl.add,
                operand1=result[:, lag:columns],
            )
""",
    ),
)
