"""`Draw`: the random arrays of a case, the same on every machine; and what each style does to activations.

A kernel gets away with much on normal values: no maximum taken before exp, a row that is skipped, an epsilon that
is forgotten. Each style takes one such comfort away. Rows are along the last axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np

from neuron_port.recipe import Style

STYLES: tuple[Style, ...] = get_args(Style)
OUTLIER, OUTLIER_OF_HEADS = 1e3, 10.0  # heads meet heads in a product: a thousandfold would be a million
ONE_HOT, BESIDE_ONE_HOT = 8.0, 0.05
CLUSTERS, CLUSTER_WIDTH = 3, 1e-2
SUBNORMAL = 1e-39  # below the least normal float32 and bfloat16, 1.2e-38


class Draw:
    """Random NumPy arrays for a case. `scale` and `style` are for activations; weights and integers stay as they are."""

    def __init__(self, seed: int, scale: float = 1.0, style: Style = "normal") -> None:
        self._generator = np.random.default_rng(seed)
        self._scale = np.float32(scale)
        self._style = style

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Activations: normal, float32, in the case's style, times its scale."""
        values = self._generator.standard_normal(shape, dtype=np.float32)
        if values.ndim and values.size and self._style != "normal":
            values = _RESTYLED[self._style](values, self._generator)
        return values * self._scale

    def weight(self, shape: tuple[int, ...]) -> np.ndarray:
        """Weights: normal, divided by the square root of the first axis, so that activations keep their size."""
        return self._generator.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[0]))

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        """Integers from `low` up to, but without, `high`, in int32."""
        return self._generator.integers(low, high, shape, dtype=np.int32)


def _constant_rows(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Every row has one value: its variance is nothing but rounding."""
    return np.broadcast_to(values[..., :1], values.shape).copy()


def _outliers(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One feature is a thousand times the others, as language models have them; ten times in heads [B, S, H, D]."""
    values[..., values.shape[-1] // 3] *= OUTLIER if values.ndim < 4 else OUTLIER_OF_HEADS
    return values


def _one_hot(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One element of each row, somewhere else in each, stands far above the rest: a tile that is skipped shows."""
    place = generator.integers(0, values.shape[-1], (*values.shape[:-1], 1))
    values *= np.float32(BESIDE_ONE_HOT)
    np.put_along_axis(values, place, np.float32(ONE_HOT), axis=-1)
    return values


def _clustered(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Values crowd around a few centres: maxima are nearly tied, differences cancel."""
    centres = generator.standard_normal(CLUSTERS, dtype=np.float32)
    chosen = generator.integers(0, CLUSTERS, values.shape)
    return centres[chosen] + values * np.float32(CLUSTER_WIDTH)


def _long_tail(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Most values are small and a few are twenty times as large: the sign of a normal, the size of its cube."""
    return values**3 / np.float32(np.sqrt(15))  # the cube of a normal has variance 15


def _signed_zeros(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Half of the values are 0 or -0, some are subnormal."""
    kind = generator.integers(0, 8, values.shape)
    values[kind < 2] = 0.0
    values[(kind >= 2) & (kind < 4)] = -0.0
    values[kind == 4] *= np.float32(SUBNORMAL)
    return values


_RESTYLED: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "constant rows": _constant_rows,
    "outliers": _outliers,
    "one hot": _one_hot,
    "clustered": _clustered,
    "long tail": _long_tail,
    "signed zeros": _signed_zeros,
}
