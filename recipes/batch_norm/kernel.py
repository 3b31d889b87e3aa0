"""Batch normalisation with fixed statistics: a channel, or part of one, on each partition; one pass over the data.

Legend: N = images, C = channels, S = pixels, P = partitions, K = parts of a channel, rows = (N, C, K).
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
STEP_BYTES = 16 * 1024  # of x per partition and DMA


@nki.jit
def batch_norm(x, mean, variance, gamma=None, beta=None, eps=1e-5):
    """Scale and shift each channel: (x - mean) / sqrt(variance + eps) * gamma + beta, folded into x * scale + shift.

    Args:
        x: [N, C, S] @ HBM, float32 or bfloat16. Any N, C and S.
        mean, variance: [C] @ HBM, float32 or bfloat16: the statistics of training.
        gamma, beta: [C] @ HBM, or None.
        eps: added to the variance; a Python float.
    Returns: [N, C, S] @ HBM, dtype of x.
    Accuracy: float32 throughout, rounded once.
    """
    images, channels, pixels = x.shape
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    parts = channel_parts(images * channels, pixels)
    rows, width = images * channels * parts, pixels // parts
    x_rows, out_rows = x.reshape((rows, width)), out.reshape((rows, width))
    eps_sbuf = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=eps_sbuf, value=eps)  # gen2 takes a bias only as a tile
    step = STEP_BYTES // (4 if x.dtype == nl.float32 else 2)
    scale, shift = None, None
    for start in range(0, rows, P):
        count = min(P, rows - start)
        if start == 0 or P % (channels * parts) != 0:  # otherwise every tile begins with the same channel
            scale, shift = scale_and_shift(
                mean, variance, gamma, beta, start, count, (channels, parts), eps_sbuf[0:count, :]
            )
        for first in range(0, width, step):
            last = min(first + step, width)
            tile = nl.ndarray((count, last - first), dtype=x.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=tile, src=x_rows[start : start + count, first:last])
            nisa.activation(dst=tile, op=nl.copy, data=tile, scale=scale[0:count, :], bias=shift[0:count, :])
            nisa.dma_copy(dst=out_rows[start : start + count, first:last], src=tile)
    return out


def channel_parts(rows, pixels):
    """Return into how many parts each channel is cut, so that few channels still occupy many partitions."""
    best = 1
    for parts in range(2, P + 1):
        if pixels % parts == 0 and rows * parts <= P:
            best = parts
    return best


def scale_and_shift(mean, variance, gamma, beta, start, rows, channel_layout, eps_sbuf):
    """Return scale = gamma / deviation and shift = beta - mean * scale of each row: [rows, 1] @ SBUF, float32."""
    scale = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    shift = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    loaded = load_parameter(variance, start, rows, channel_layout)
    nisa.activation(dst=scale, op=nl.rsqrt, data=loaded, bias=eps_sbuf)
    if gamma != None:  # noqa: E711 (the NKI compiler has no `is`)
        gain = load_parameter(gamma, start, rows, channel_layout)
        nisa.tensor_tensor(dst=scale, data1=scale, data2=gain, op=nl.multiply)
    nisa.scalar_tensor_tensor(
        dst=shift,
        data=load_parameter(mean, start, rows, channel_layout),
        op0=nl.multiply,
        operand0=-1.0,
        op1=nl.multiply,
        operand1=scale,
    )
    if beta != None:  # noqa: E711
        offset = load_parameter(beta, start, rows, channel_layout)
        nisa.tensor_tensor(dst=shift, data1=shift, data2=offset, op=nl.add)
    return scale, shift


def load_parameter(parameter, start, rows, channel_layout):
    """Return the parameter of each row's channel: [rows, 1] @ SBUF. Row r belongs to channel r // K mod C."""
    channels, parts = channel_layout
    tile = nl.ndarray((rows, 1), dtype=parameter.dtype, buffer=nl.sbuf)
    by_part = parameter.reshape((channels, 1)).broadcast(1, parts)
    done = 0
    while done < rows:
        channel = (start + done) // parts % channels
        count = min((rows - done) // parts, channels - channel)
        nisa.dma_copy(dst=tile[done : done + count * parts, :], src=by_part[channel : channel + count, :])
        done += count * parts
    return tile
