"""What the styles of a draw do."""

from __future__ import annotations

import numpy as np
import pytest

from neuron_port.parity.draw import STYLES, Draw

SHAPE = (200, 60)


@pytest.mark.parametrize("style", STYLES)
def test_draws_are_repeatable_and_scaled(style):
    """Equal seeds give equal float32 values; the scale multiplies them, and weights are left alone by both."""
    one, again, scaled = Draw(7, 1.0, style), Draw(7, 1.0, style), Draw(7, 4.0, style)
    values = one.normal(SHAPE)
    assert values.dtype == np.float32
    assert np.array_equal(values, again.normal(SHAPE))
    assert np.array_equal(values * np.float32(4), scaled.normal(SHAPE))
    assert np.array_equal(one.weight(SHAPE), scaled.weight(SHAPE))
    assert np.isfinite(values).all()


def test_styles_are_what_they_are_called():
    """Rows are constant, a feature stands out, one element of each row does, values cluster, zeros have signs."""
    drawn = {style: Draw(3, 1.0, style).normal(SHAPE) for style in STYLES}
    assert (np.ptp(drawn["constant rows"], axis=1) == 0).all()
    assert drawn["constant rows"].std() > 0
    assert np.abs(drawn["outliers"][:, 20]).mean() > 100 * np.abs(drawn["outliers"][:, 21]).mean()
    peaks = drawn["one hot"].argmax(axis=1)
    assert ((drawn["one hot"] > 4).sum(axis=1) == 1).all()
    assert len(np.unique(peaks)) > 20
    assert len(np.unique(drawn["clustered"].round(1))) < 10
    assert np.abs(drawn["long tail"]).max() > 10
    zeros = drawn["signed zeros"] == 0
    assert 0.4 < zeros.mean() < 0.6
    assert np.signbit(drawn["signed zeros"][zeros]).any()
    assert not np.signbit(drawn["signed zeros"][zeros]).all()


def test_outliers_in_heads_stay_small():
    """Four axes are heads, which meet each other in a product: ten times, not a thousand."""
    heads = Draw(3, 1.0, "outliers").normal((2, 8, 4, 30))
    assert 3 < np.abs(heads[..., 10]).mean() / np.abs(heads[..., 11]).mean() < 30
