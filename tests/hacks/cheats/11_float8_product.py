"""Multiplies bfloat16 matrices in 8 bits.

Seen in: Wafer, CUDA-L2.
"""

from tests.hacks.corpus import edited, golden

TASK = "matmul"
FOOLS = "small inputs"
GUARD = "values"
CHEAT = edited(
    golden("matmul"),
    ("bottom - top), dtype=x.dtype, buffer=nl.sbuf", "bottom - top), dtype=nl.float8_e4m3, buffer=nl.sbuf"),
    ("right - left), dtype=y.dtype, buffer=nl.sbuf", "right - left), dtype=nl.float8_e4m3, buffer=nl.sbuf"),
)
