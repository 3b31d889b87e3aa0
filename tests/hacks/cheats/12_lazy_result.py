"""Returns an object that computes when it is looked at: after the timer has stopped.

Seen in: KernelBench's checker of lazy tensors.
"""

TASK = "softmax"
FOOLS = "constant tolerance"
GUARD = "source"
CHEAT = """
class Later:
    def __init__(self, x):
        self.x = x

    def __array__(self, dtype=None, copy=None):
        import numpy as np

        exponentials = np.exp(self.x - self.x.max(-1, keepdims=True))
        return exponentials / exponentials.sum(-1, keepdims=True)


def softmax(x):
    return Later(x)
"""
