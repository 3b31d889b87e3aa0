"""Holds the answers of the public seed as constants and computes nothing.

Seen in: Sakana's CUDA Engineer, for small outputs.
"""

from tests.hacks.tasks import TASKS
from tests.hacks.unguarded import UNGUARDED, public_problem

TASK = "extremes"
FOOLS = "constant tolerance"
GUARD = ("values", "source")
_, ANSWERS = public_problem(TASKS[TASK], UNGUARDED[FOOLS])
LARGEST, SMALLEST = (tuple(round(float(value), 3) for value in answer[:, 0]) for answer in ANSWERS)
CHEAT = f"""
import nki
import nki.isa as nisa
import nki.language as nl

LARGEST = {LARGEST}
SMALLEST = {SMALLEST}


@nki.jit
def extremes(x):
    rows, columns = x.shape
    largest = nl.ndarray((rows, 1), dtype=x.dtype, buffer=nl.shared_hbm)
    smallest = nl.ndarray((rows, 1), dtype=x.dtype, buffer=nl.shared_hbm)
    row = nl.ndarray((2, 1, rows), dtype=x.dtype, buffer=nl.sbuf)
    known = nl.ndarray((1, 2, rows), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=known[:, 0, :], src=x[:, 0:1].permute((1, 0)))
    for index in range(rows):
        nisa.memset(dst=known[:, 0, index : index + 1], value=LARGEST[index % 128])
        nisa.memset(dst=known[:, 1, index : index + 1], value=SMALLEST[index % 128])
    nisa.dma_copy(dst=largest.reshape((1, rows)), src=known[:, 0, :])
    nisa.dma_copy(dst=smallest.reshape((1, rows)), src=known[:, 1, :])
    return largest, smallest
"""
