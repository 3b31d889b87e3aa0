"""Pooling: the largest value, or the mean, of each window of an image.

Legend: B = images, C = channels, H, W = image, R, S = window, M, N = rows and columns of the result, P = partitions,
J = planes of a partition.

Every plane [H, W] is independent: planes lie on partitions. A strided access pattern shows VectorE all windows at once,
[M, N, R, S], and one instruction reduces the last two axes. Windows that reach beyond the image are smaller there, and
get instructions of their own; so nothing is padded, and planes arrive in long pieces.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
LOAD_BYTES = 24 * 1024  # of x per partition and band
MOST_BYTES = 96 * 1024  # of the rows that one row of windows meets


@nki.jit
def pool2d(x, maximum, window_y, window_x, stride_y, stride_x, padding_y, padding_x, ceil, count_padding):
    """Reduce each window of each plane.

    Args:
        x: [B, C, H, W] @ HBM, float32 or bfloat16.
        maximum: whether to take the largest value, else the mean; a Python bool.
        window_y, ...: Python integers.
        ceil: whether windows may begin inside and end outside beyond the padding; a Python bool.
        count_padding: whether a mean counts the padding as zeros; a Python bool.
    Returns: [B, C, M, N] @ HBM, dtype of x.
    Accuracy: the maximum exactly; the mean in float32, rounded once.
    """
    images, channels, height, width = x.shape
    along_y = (window_y, stride_y, padding_y, height, ceil, count_padding)
    along_x = (window_x, stride_x, padding_x, width, ceil, count_padding)
    rows, columns = outputs_of(along_y), outputs_of(along_x)
    out = nl.ndarray((images, channels, rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    planes = images * channels
    if window_y == height and window_x == width and rows == 1 and columns == 1 and padding_y + padding_x == 0:
        pool_whole(out.reshape((planes,)), x.reshape((planes, height * width)), maximum)
    else:
        out_planes, x_planes = out.reshape((planes, rows, columns)), x.reshape((planes, height, width))
        for first in range(0, planes, P):
            last = min(first + P, planes)
            pool_planes(out_planes[first:last, :, :], x_planes[first:last, :, :], maximum, along_y, along_x)
    return out


def element_bytes(tensor):
    """Return the size of an element; kernels take float32 and bfloat16."""
    return 4 if tensor.dtype == nl.float32 else 2


def outputs_of(along):
    """Return how many windows there are along an axis."""
    window, stride, padding, size, ceil = along[0:5]
    spare = size + 2 * padding - window
    if not ceil:
        return spare // stride + 1
    outputs = (spare + stride - 1) // stride + 1
    if (outputs - 1) * stride >= size + padding:  # a window begins inside the image or its left padding
        outputs -= 1
    return outputs


def segments_of(first, end, along):
    """Return runs of outputs that meet alike parts of their windows: (first, end, first tap, end, size to divide by)."""
    window, stride, padding, size = along[0:4]
    count_padding = along[5]
    segments = []
    for output in range(first, end):
        start = output * stride - padding
        tap, beyond = max(0, -start), min(window, size - start)
        counted = beyond - tap
        if count_padding:
            counted = min(start + window, size + padding) - start
        if len(segments) > 0 and segments[-1][2:5] == (tap, beyond, counted):
            segments[-1] = (segments[-1][0], output + 1, tap, beyond, counted)
        else:
            segments.append((output, output + 1, tap, beyond, counted))
    return segments


def pool_whole(out, x, maximum):
    """One window is the whole plane [H * W]: each partition takes as many neighbouring planes as fit."""
    planes, pixels = x.shape
    most = max(1, LOAD_BYTES // (pixels * element_bytes(x)))
    first = 0
    while first < planes:
        partitions = min(P, planes - first)
        run = max(1, min(most, (planes - first) // P))
        last = first + partitions * run
        x_sbuf = nl.ndarray((partitions, run, pixels), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :].reshape((partitions, run, pixels)))
        out_sbuf = nl.ndarray((partitions, run), dtype=x.dtype, buffer=nl.sbuf)
        reduce_windows(out_sbuf, x_sbuf, 2, maximum, pixels)
        nisa.dma_copy(dst=out[first:last].reshape((partitions, run)), src=out_sbuf)
        first = last


def pool_planes(out, x, maximum, along_y, along_x):
    """Up to P planes, in bands of rows."""
    planes, rows, columns = out.shape
    window, stride, padding, height = along_y[0:4]
    width = x.shape[2]
    row_bytes = width * element_bytes(x)
    assert min(window, height) * row_bytes <= MOST_BYTES, "pool2d: the rows of a window must fit SBUF"
    band = max(1, (LOAD_BYTES // row_bytes - window) // stride + 1)
    for top in range(0, rows, band):
        bottom = min(top + band, rows)
        first = max(0, top * stride - padding)
        last = min(height, (bottom - 1) * stride - padding + window)
        x_sbuf = nl.ndarray((planes, last - first, width), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[:, first:last, :])
        out_sbuf = nl.ndarray((planes, bottom - top, columns), dtype=x.dtype, buffer=nl.sbuf)
        for across in segments_of(top, bottom, along_y):
            for along in segments_of(0, columns, along_x):
                begin_y = across[0] * stride - padding + across[2] - first
                begin_x = along[0] * along_x[1] - along_x[2] + along[2]
                windows = x_sbuf.ap(
                    pattern=[
                        [(last - first) * width, planes],
                        [stride * width, across[1] - across[0]],
                        [along_x[1], along[1] - along[0]],
                        [width, across[3] - across[2]],
                        [1, along[3] - along[2]],
                    ],
                    offset=begin_y * width + begin_x,
                )
                part = out_sbuf[:, across[0] - top : across[1] - top, along[0] : along[1]]
                reduce_windows(part, windows, (3, 4), maximum, across[4] * along[4])
        nisa.dma_copy(dst=out[:, top:bottom, :], src=out_sbuf)


def reduce_windows(out_sbuf, windows, axes, maximum, count):
    """Write the maximum, or the sum over `count`, of the last axes."""
    if maximum:
        nisa.tensor_reduce(dst=out_sbuf, op=nl.maximum, data=windows, axis=axes)
        return
    sums = nl.ndarray(out_sbuf.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=sums, op=nl.add, data=windows, axis=axes)
    nisa.activation(dst=out_sbuf, op=nl.copy, data=sums, scale=1.0 / count)
