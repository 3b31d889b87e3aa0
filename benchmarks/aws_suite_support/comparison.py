"""Our own comparison of an output with its golden value: tighter than most of the suite's tolerances.

A golden value is float32 or float64 arithmetic rounded to the output's dtype; a kernel rounds intermediate tiles to
16 or 8 bits as well. So the bound follows from the narrowest precision in sight, not from a number per test.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Roundings that meet in one output element; their errors add like random walks.
ROUNDINGS = 32
LEAST_COSINE = 0.999


def compare(actual: np.ndarray, expected: np.ndarray, roundoff: float) -> dict[str, Any]:
    """Cosine similarity, largest error relative to the largest value, root-mean-square error, and a verdict.

    `roundoff` is that of the narrowest float that the kernel held anything in.
    """
    if actual.dtype.names or expected.dtype.names or actual.shape != expected.shape:
        same = actual.shape == expected.shape and actual.tobytes() == expected.tobytes()
        return {"dtype": str(actual.dtype), "tight": bool(same)}
    name = actual.dtype.name
    a = actual.astype(np.float64).reshape(-1)
    b = expected.astype(np.float64).reshape(-1)
    if actual.dtype.kind in "iub":
        wrong = int(np.count_nonzero(a != b))
        return {"dtype": name, "wrong": wrong, "tight": wrong == 0}
    finite = np.isfinite(a) & np.isfinite(b)
    same_infinities = bool(np.array_equal(a[~finite], b[~finite], equal_nan=True))
    a, b = a[finite], b[finite]
    scale = float(np.abs(b).max(initial=0.0))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / norms if norms else float(np.array_equal(a, b))
    largest = float(np.abs(a - b).max(initial=0.0))
    root_mean_square = float(np.sqrt(np.mean((a - b) ** 2))) if a.size else 0.0
    spread = float(np.sqrt(np.mean(b**2))) if b.size else 0.0
    bound = np.sqrt(ROUNDINGS) * roundoff
    tight = same_infinities and cosine >= LEAST_COSINE and root_mean_square <= bound * spread
    return {
        "dtype": name,
        "cosine": round(cosine, 7),
        "max_relative": largest / scale if scale else largest,
        "rms_relative": root_mean_square / spread if spread else root_mean_square,
        "bound": float(bound),
        "tight": bool(tight),
    }
