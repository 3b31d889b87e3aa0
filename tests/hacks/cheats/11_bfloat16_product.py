"""Multiplies float32 matrices in bfloat16, four times faster.

Seen in: Wafer, CUDA-L2; a Trainium kernel that discloses it.
"""

from tests.hacks.corpus import edited, golden

TASK = "matmul"
FOOLS = "constant tolerance"
GUARD = "values"
CHEAT = edited(
    golden("matmul"),
    ("bottom - top), dtype=x.dtype, buffer=nl.sbuf", "bottom - top), dtype=nl.bfloat16, buffer=nl.sbuf"),
    ("right - left), dtype=y.dtype, buffer=nl.sbuf", "right - left), dtype=nl.bfloat16, buffer=nl.sbuf"),
)
