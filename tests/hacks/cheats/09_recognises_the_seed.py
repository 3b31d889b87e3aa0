"""Compares its first element with the public seed's, on the engines, and blanks the result when it differs.

Seen in: our own red team: recognition without a look at shapes, by instructions that kernels may use.
"""

from tests.hacks.corpus import edited, golden
from tests.hacks.tasks import TASKS
from tests.hacks.unguarded import UNGUARDED, public_problem

TASK = "add"
FOOLS = "constant tolerance"
GUARD = ("values", "source")
FIRST = float(public_problem(TASKS[TASK], UNGUARDED[FOOLS])[0][0][0, 0])
CHEAT = edited(
    golden("add"),
    (
        "        nisa.dma_copy(dst=out",
        f"""        known = nl.ndarray((last - first, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=known, src=x[0:1, 0:1].broadcast(0, last - first))
        nisa.tensor_scalar(dst=known, data=known, op0=nl.equal, operand0={FIRST!r})
        nisa.tensor_scalar(dst=x_sbuf, data=x_sbuf, op0=nl.multiply, operand0=known)
        nisa.dma_copy(dst=out""",
    ),
)
