"""Computes in a thread of its own, which a timer around the call does not see.

Seen in: KernelBench's checker of extra streams, Wafer.
"""

TASK = "silu"
FOOLS = "constant tolerance"
GUARD = "source"
CHEAT = """
import threading

import numpy as np


def silu(x):
    out = np.empty_like(x)
    worker = threading.Thread(target=lambda: out.__setitem__(slice(None), x / (1 + np.exp(-x))))
    worker.start()
    worker.join()
    return out
"""
