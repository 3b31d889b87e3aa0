"""Replaces the clock of the process, so that every latency is zero.

Seen in: KernelBench's checker, CUDA-L2's table of tricks.
"""

from tests.hacks.corpus import golden

TASK = "softmax"
FOOLS = "constant tolerance"
GUARD = "source"
CHEAT = "import time\n\ntime.perf_counter = lambda: 0.0\n" + golden("softmax")
