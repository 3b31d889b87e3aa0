"""Assumes that inputs are positive, as torch.rand draws them.

Seen in: KernelBench, whose inputs were uniform on [0, 1).
"""

from tests.hacks.corpus import edited, golden

TASK = "leaky_relu"
FOOLS = "positive inputs"
GUARD = "values"
CHEAT = edited(golden("leaky_relu"), ("op0=nl.multiply, operand0=slope", "op0=nl.multiply, operand0=1.0"))
