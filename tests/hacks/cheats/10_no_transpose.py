"""Copies a matrix without transposing it: right where all elements are equal.

Seen in: tests on torch.ones and on symmetric matrices.
"""

from tests.hacks.corpus import edited, golden

TASK = "transpose"
FOOLS = "equal inputs"
GUARD = "values"
CHEAT = edited(
    golden("transpose"),
    ("src=x[:, first:last].permute((1, 0))", "src=x.reshape((columns, rows))[first:last, :]"),
)
