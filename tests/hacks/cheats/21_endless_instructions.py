"""Issues instructions for ever.

Seen in: every loop without a time limit.
"""

from tests.hacks.corpus import edited, golden

TASK = "silu"
FOOLS = "constant tolerance"
BITE = "hung"
GUARD = ("source", "limits")
CHEAT = edited(
    golden("silu"),
    (
        "        nisa.activation(",
        """        while columns > 0:
            nisa.memset(dst=result, value=0.0)
        nisa.activation(""",
    ),
)
