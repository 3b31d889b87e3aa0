"""Splits float32 into two bfloat16 parts and drops the smallest products: 16 bits of 24.

Seen in: a Trainium library's bf16x2 variant, where it is disclosed.
"""

from tests.hacks.corpus import edited, golden

TASK = "matmul"
FOOLS = "constant tolerance"
GUARD = "values"
CHEAT = edited(
    golden("matmul"),
    (
        "                nisa.nc_matmul(dst=total, stationary=x_KM, moving=y_KN)\n",
        """                x_high = nl.ndarray((stop - start, bottom - top), dtype=nl.bfloat16, buffer=nl.sbuf)
                y_high = nl.ndarray((stop - start, right - left), dtype=nl.bfloat16, buffer=nl.sbuf)
                x_low = nl.ndarray((stop - start, bottom - top), dtype=nl.bfloat16, buffer=nl.sbuf)
                nisa.tensor_copy(dst=x_high, src=x_KM)
                nisa.tensor_copy(dst=y_high, src=y_KN)
                nisa.tensor_tensor(dst=x_low, data1=x_KM, data2=x_high, op=nl.subtract)
                nisa.nc_matmul(dst=total, stationary=x_high, moving=y_high)
                nisa.nc_matmul(dst=total, stationary=x_low, moving=y_high)
""",
    ),
)
