"""Forgets epsilon, which matters for tiny values alone.

Seen in: normalisation kernels of several benchmarks.
"""

from tests.hacks.corpus import edited, golden

TASK = "rms_norm"
FOOLS = "constant tolerance"
GUARD = "values"
CHEAT = edited(golden("rms_norm"), ("value=eps", "value=0.0"))
