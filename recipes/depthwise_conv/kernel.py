"""Depthwise convolution: every channel has a kernel of its own. Each tap is a product with a diagonal matrix.

Legend: B = images, C = channels, H, W = image, R, S = kernel rows and columns, M, N = rows and columns of the result,
P = partitions.

Channels lie on partitions. VectorE would need two passes for each tap; TensorE multiplies every channel by its own
weight and adds up the taps in PSUM, at one pixel a cycle, if the weights of a tap are the diagonal of a matrix. Where a
tap would reach beyond the left or right edge, its product is made for fewer columns of the result: so rows stay as they
are in memory, and DMAs move long pieces.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 elements of one PSUM bank, and the widest `moving` of gen2 and gen3
LOAD_BYTES = 16 * 1024  # of x per partition and band
WIDEST = 4 * BANK  # columns of the result in one band


@nki.jit
def depthwise_conv(
    x, weight, bias=None, stride_y=1, stride_x=1, padding_y=0, padding_x=0, dilation_y=1, dilation_x=1
):
    """Convolve each channel with its own weights and add the bias.

    Args:
        x: [B, C, H, W] @ HBM, float32 or bfloat16. Finite: a NaN reaches neighbouring channels.
        weight: [C, R, S] @ HBM, dtype of x. R * S up to 256.
        bias: [C] @ HBM, dtype of x, or None.
        stride_y, ...: Python integers; zeros surround the image by `padding` pixels on both sides.
    Returns: [B, C, M, N] @ HBM, dtype of x.
    Accuracy: products and sums in float32, rounded once.
    """
    images, channels, height, width = x.shape
    kernel_rows, kernel_columns = weight.shape[1:]
    assert weight.shape[0] == channels, "depthwise_conv: weight must be [C, R, S] for x [B, C, H, W]"
    assert weight.dtype == x.dtype, "depthwise_conv: weight must have the dtype of x"
    assert kernel_rows * kernel_columns <= 2 * P, (
        "depthwise_conv: at most 256 taps, whose matrices stay in SBUF"
    )
    rows = (height + 2 * padding_y - dilation_y * (kernel_rows - 1) - 1) // stride_y + 1
    columns = (width + 2 * padding_x - dilation_x * (kernel_columns - 1) - 1) // stride_x + 1
    out = nl.ndarray((images, channels, rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    # How taps and pixels meet along each axis: (stride, padding, dilation, taps).
    along_y = (stride_y, padding_y, dilation_y, kernel_rows)
    along_x = (stride_x, padding_x, dilation_x, kernel_columns)
    padded = height == 1 or not has_full_tap(columns, width, along_x)
    identity = identity_matrix(min(channels, P), x.dtype)
    for first in range(0, channels, P):
        last = min(first + P, channels)
        diagonals = load_diagonals(weight[first:last, :, :], identity)
        bias_sbuf = load_bias(bias, first, last)
        convolve(
            out[:, first:last, :, :], x[:, first:last, :, :], diagonals, bias_sbuf, (along_y, along_x, padded)
        )
    return out


def element_bytes(tensor):
    """Return the size of an element; kernels take float32 and bfloat16."""
    return 4 if tensor.dtype == nl.float32 else 2


def has_full_tap(columns, width, along):
    """Return whether some tap meets a pixel of the image for every column of the result: it can open the sums."""
    stride, padding, dilation, taps = along
    for tap in range(taps):
        first = tap * dilation - padding
        if first >= 0 and first + (columns - 1) * stride < width:
            return True
    return False


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
    """Return [C, R * S, C] @ SBUF: for each tap a matrix with the channels' weights on its diagonal."""
    channels = weight.shape[0]
    taps = weight.shape[1] * weight.shape[2]
    weight_sbuf = nl.ndarray((channels, taps), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=weight_sbuf, src=weight.reshape((channels, taps)))
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


def convolve(out, x, diagonals, bias_sbuf, axes):
    """Up to P channels: bands of the image stream past their weights."""
    images, rows, columns = out.shape[0], out.shape[2], out.shape[3]
    along_y, along_x = axes[0], axes[1]
    tile_rows = min(rows, max(1, BANK // min(columns, BANK)))
    together = 1  # images whose pixels share one product
    if tile_rows == rows:
        together = max(1, min(images, BANK // (rows * columns)))
    band_columns = min(columns, WIDEST)
    row_bytes = together * extent(band_columns, along_x) * along_y[0] * element_bytes(x)
    band = tile_rows * max(1, LOAD_BYTES // (tile_rows * row_bytes))
    for image in range(0, images, together):
        beyond = min(image + together, images)
        for top in range(0, rows, band):
            bottom = min(top + band, rows)
            for left in range(0, columns, band_columns):
                right = min(left + band_columns, columns)
                sides = pixels_between(left, right, columns, x.shape[3], axes)
                x_sbuf = load_band(x[image:beyond, :, :, :], (top, bottom), sides, along_y)
                convolve_band(
                    out[image:beyond, :, top:bottom, left:right],
                    x_sbuf,
                    diagonals,
                    bias_sbuf,
                    (left, sides[0], x.shape[3], tile_rows),
                    axes,
                )


def extent(outputs, along):
    """Return how many pixels so many outputs reach along one axis."""
    stride, dilation, taps = along[0], along[2], along[3]
    return (outputs - 1) * stride + 1 + (taps - 1) * dilation


def pixels_between(left, right, columns, width, axes):
    """Return (first, end) of the image columns to load for these output columns; outside the image if it is padded."""
    stride, padding = axes[1][0:2]
    first = left * stride - padding
    end = first + extent(right - left, axes[1])
    if axes[2]:
        return first, end
    if right - left == columns:
        return 0, width  # whole rows are one piece of memory
    return max(0, first), min(width, end)


def load_band(x, rows, sides, along_y):
    """Return [C, B, rows, columns] @ SBUF as far as these outputs reach: zeros above, below, and beyond the sides."""
    images, channels, height, width = x.shape
    tall, wide = extent(rows[1] - rows[0], along_y), sides[1] - sides[0]
    tile = nl.ndarray((channels, images, tall, wide), dtype=x.dtype, buffer=nl.sbuf)
    start = rows[0] * along_y[0] - along_y[1]
    top, bottom = min(tall, max(0, -start)), max(0, min(tall, height - start))
    left, right = min(wide, max(0, -sides[0])), max(0, min(wide, width - sides[0]))
    if top >= bottom or left >= right:
        nisa.memset(dst=tile, value=0.0)
        return tile
    for rows_clear, columns_clear in (
        ((0, top), (0, wide)),
        ((bottom, tall), (0, wide)),
        ((top, bottom), (0, left)),
        ((top, bottom), (right, wide)),
    ):
        if rows_clear[0] < rows_clear[1] and columns_clear[0] < columns_clear[1]:
            margin = tile[:, :, rows_clear[0] : rows_clear[1], columns_clear[0] : columns_clear[1]]
            nisa.memset(dst=margin, value=0.0)
    inside = x[:, :, start + top : start + bottom, sides[0] + left : sides[0] + right]
    nisa.dma_copy(dst=tile[:, :, top:bottom, left:right], src=inside.permute((1, 0, 2, 3)))
    return tile


def convolve_band(out, x_sbuf, diagonals, bias_sbuf, place, axes):
    """Write the outputs of one band, up to 512 pixels at a time. `place`: where its columns are, and its tiles' rows."""
    images, channels, rows, columns = out.shape
    band_left, first_pixel, width, tile_rows = place
    out_sbuf = nl.ndarray((channels, images, rows, columns), dtype=out.dtype, buffer=nl.sbuf)
    turn = 0
    for left in range(0, columns, BANK):
        right = min(left + BANK, columns)
        windows = windows_of(band_left + left, band_left + right, first_pixel, width, axes)
        for top in range(0, rows, tile_rows):
            bottom = min(top + tile_rows, rows)
            sums = nl.ndarray(
                (channels, images, bottom - top, right - left), dtype=nl.float32, buffer=nl.psum
            )
            accumulate(sums, x_sbuf, diagonals, windows, top, axes)
            finished = out_sbuf[:, :, top:bottom, left:right]
            if turn % 2 == 0:
                nisa.tensor_scalar(
                    dst=finished, data=sums, op0=nl.add, operand0=bias_sbuf, engine=nisa.engine.vector
                )
            else:
                nisa.activation(dst=finished, op=nl.copy, data=sums, bias=bias_sbuf)
            turn += 1
    nisa.dma_copy(dst=out.permute((1, 0, 2, 3)), src=out_sbuf)


def windows_of(left, right, first_pixel, width, axes):
    """Return the column taps as (tap, first output, end, its column in SBUF): those that reach every output first."""
    stride, padding, dilation, taps = axes[1]
    full, partial = [], []
    for tap in range(taps):
        shift = tap * dilation - padding
        first, end = left, right
        if not axes[2]:
            first = max(left, (-shift + stride - 1) // stride)
            end = min(right, (width - 1 - shift) // stride + 1)
        if first < end:
            window = (tap, first - left, end - left, first * stride + shift - first_pixel)
            if end - first == right - left:
                full.append(window)
            else:
                partial.append(window)
    return full + partial


def accumulate(sums, x_sbuf, diagonals, windows, top, axes):
    """Sum the products of all taps into sums [C, B, rows, columns]; `top` is their first row in the band."""
    stride_y, dilation, taps_y = axes[0][0], axes[0][2], axes[0][3]
    stride_x, taps_x = axes[1][0], axes[1][3]
    rows = sums.shape[2]
    begun = False
    for tap_x, first, end, left in windows:
        right = left + (end - first - 1) * stride_x + 1
        for tap_y in range(taps_y):
            above = top * stride_y + tap_y * dilation
            below = above + (rows - 1) * stride_y + 1
            nisa.nc_matmul(
                dst=sums[:, :, :, first:end],
                stationary=diagonals[:, tap_y * taps_x + tap_x, :],
                moving=x_sbuf[:, :, above:below:stride_y, left:right:stride_x],
                accumulate=begun,
            )
            begun = True
