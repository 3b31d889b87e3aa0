"""Causal depthwise convolution of a sequence, with an activation: each tap is a product with a diagonal matrix.

Legend: B = sequences, C = channels, S = length, K = taps, P = partitions.

Channels lie on partitions. VectorE would need two passes for each tap; TensorE multiplies every channel by its own
weight and adds up the taps in PSUM, at one column a cycle, if the weights of a tap are the diagonal of a matrix.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 elements of one PSUM bank, and the widest `moving` of gen2 and gen3
BAND = 4 * BANK  # elements of a sequence that are loaded at once


@nki.jit
def causal_conv1d(x, weight, bias=None, silu=False):
    """Sum the last K elements of each channel, weighted, add the bias, and take silu if asked.

    Args:
        x: [B, C, S] @ HBM, float32 or bfloat16. Zeros come before it. Finite: a NaN reaches neighbouring channels.
        weight: [C, K] @ HBM, dtype of x; the last tap meets the element itself. K up to 128.
        bias: [C] @ HBM, dtype of x, or None.
        silu: whether the result is y * sigmoid(y); a Python bool.
    Returns: [B, C, S] @ HBM, dtype of x.
    Accuracy: products and sums in float32, rounded once.
    """
    sequences, channels, length = x.shape
    taps = weight.shape[1]
    assert weight.shape[0] == channels, "causal_conv1d: weight must be [C, K] for x [B, C, S]"
    assert weight.dtype == x.dtype, "causal_conv1d: weight must have the dtype of x"
    assert taps <= P, "causal_conv1d: at most 128 taps"
    out = nl.ndarray((sequences, channels, length), dtype=x.dtype, buffer=nl.shared_hbm)
    identity = identity_matrix(min(channels, P), x.dtype)
    together = max(1, min(sequences, BANK // length))  # sequences whose elements share one product
    for first in range(0, channels, P):
        last = min(first + P, channels)
        diagonals = load_diagonals(weight[first:last, :], identity)
        bias_sbuf = load_bias(bias, first, last)
        for sequence in range(0, sequences, together):
            beyond = min(sequence + together, sequences)
            for start in range(0, length, BAND):
                stop = min(start + BAND, length)
                x_sbuf = load_band(x[sequence:beyond, first:last, :], start, stop, taps)
                convolve_band(
                    out[sequence:beyond, first:last, start:stop], x_sbuf, diagonals, bias_sbuf, silu
                )
    return out


def identity_matrix(size, dtype):
    """Return ones on the diagonal of zeros: [size, size] @ SBUF."""
    ones = nl.ndarray((size, size), dtype=dtype, buffer=nl.sbuf)
    identity = nl.ndarray((size, size), dtype=dtype, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    nisa.affine_select(
        dst=identity, pattern=[[-1, size]], channel_multiplier=1, on_true_tile=ones, on_false_value=0.0
    )
    return identity


def load_diagonals(weight, identity):
    """Return [C, K, C] @ SBUF: for each tap a matrix with the channels' weights on its diagonal."""
    channels, taps = weight.shape
    weight_sbuf = nl.ndarray((channels, taps), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=weight_sbuf, src=weight)
    diagonals = nl.ndarray((channels, taps, channels), dtype=weight.dtype, buffer=nl.sbuf)
    for tap in range(taps):
        nisa.tensor_scalar(
            dst=diagonals[:, tap, :],
            data=identity[0:channels, 0:channels],
            op0=nl.multiply,
            operand0=weight_sbuf[:, tap : tap + 1],
            engine=nisa.engine.vector,
        )
    return diagonals


def load_bias(bias, first, last):
    """Return the bias of some channels, [C, 1] @ SBUF in float32: zeros if there is none."""
    tile = nl.ndarray((last - first, 1), dtype=nl.float32, buffer=nl.sbuf)
    if bias == None:  # noqa: E711 (the NKI compiler has no `is`)
        nisa.memset(dst=tile, value=0.0)
    else:
        nisa.dma_copy(dst=tile, src=bias[first:last].expand_dim(1))
    return tile


def load_band(x, start, stop, taps):
    """Return [C, B, K - 1 + elements] @ SBUF: elements start to stop and the K - 1 before them, or zeros."""
    sequences, channels = x.shape[0:2]
    history = taps - 1
    tile = nl.ndarray((channels, sequences, history + stop - start), dtype=x.dtype, buffer=nl.sbuf)
    missing = max(0, history - start)
    if missing > 0:
        nisa.memset(dst=tile[:, :, 0:missing], value=0.0)
    inside = x[:, :, start - history + missing : stop]
    nisa.dma_copy(dst=tile[:, :, missing : history + stop - start], src=inside.permute((1, 0, 2)))
    return tile


def convolve_band(out, x_sbuf, diagonals, bias_sbuf, silu):
    """Write up to BAND elements of each sequence, 512 at a time; ScalarE adds the bias as it empties PSUM."""
    sequences, channels, length = out.shape
    taps = diagonals.shape[1]
    out_sbuf = nl.ndarray((channels, sequences, length), dtype=out.dtype, buffer=nl.sbuf)
    for left in range(0, length, BANK):
        right = min(left + BANK, length)
        sums = nl.ndarray((channels, sequences, right - left), dtype=nl.float32, buffer=nl.psum)
        for tap in range(taps):
            nisa.nc_matmul(
                dst=sums,
                stationary=diagonals[:, tap, :],
                moving=x_sbuf[:, :, left + tap : right + tap],
                accumulate=tap > 0,
            )
        if silu:
            nisa.activation(dst=out_sbuf[:, :, left:right], op=nl.silu, data=sums, bias=bias_sbuf)
        else:
            nisa.tensor_scalar(
                dst=out_sbuf[:, :, left:right],
                data=sums,
                op0=nl.add,
                operand0=bias_sbuf,
                engine=nisa.engine.vector,
            )
    nisa.dma_copy(dst=out.permute((1, 0, 2)), src=out_sbuf)
