"""Two-dimensional convolution: the products of all kernel taps meet in PSUM, and no patch is ever gathered.

Legend: B = images, C = input channels, H, W = image, R, S = kernel rows and columns, O = output channels,
M, N = rows and columns of the result, P = partitions.

Channels lie on partitions. For one tap, the pixels that it meets are a strided view of the image in SBUF, which is
`moving`; the tap's weights [C, O] are `stationary`. Where a tap would reach beyond the left or right edge, its product
is made for fewer columns of the result: so rows stay as they are in memory, and DMAs move long pieces.

Few channels leave partitions idle, so that copies of the image, each shifted by a tap, fill them: one product then does
the work of several taps. Copies that are shifted sideways need zeros at the edges, and those images are padded in SBUF.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 elements of one PSUM bank, and the widest `moving` of gen2 and gen3
WEIGHT_BYTES = 64 * 1024  # of weights per partition, of 176 KiB on gen2
LOAD_BYTES = 16 * 1024  # of x per partition and band
FEW_CHANNELS = 8
MOST_COPIES = 16  # of the image: each is read from HBM


@nki.jit
def conv2d(
    x,
    weight,
    bias=None,
    stride_y=1,
    stride_x=1,
    padding_y=0,
    padding_x=0,
    dilation_y=1,
    dilation_x=1,
    groups=1,
):
    """Convolve images with weights and add the bias.

    Args:
        x: [B, C, H, W] @ HBM, float32 or bfloat16.
        weight: [C / groups, R, S, O] @ HBM, dtype of x. C / groups * R * S up to 16384.
        bias: [O] @ HBM, dtype of x, or None.
        stride_y, ...: Python integers; zeros surround the image by `padding` pixels on both sides.
    Returns: [B, O, M, N] @ HBM, dtype of x.
    Accuracy: products and sums in float32, rounded once.
    """
    images, channels, height, width = x.shape
    group_channels, kernel_rows, kernel_columns, features = weight.shape
    assert group_channels * groups == channels, (
        "conv2d: weight must be [C / groups, R, S, O] for x [B, C, H, W]"
    )
    assert weight.dtype == x.dtype, "conv2d: weight must have the dtype of x"
    rows = (height + 2 * padding_y - dilation_y * (kernel_rows - 1) - 1) // stride_y + 1
    columns = (width + 2 * padding_x - dilation_x * (kernel_columns - 1) - 1) // stride_x + 1
    out = nl.ndarray((images, features, rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    copies_y, copies_x = copies_of(group_channels, kernel_rows, kernel_columns)
    padded = copies_x > 1 or not has_full_tap(columns, width, stride_x, padding_x, dilation_x, kernel_columns)
    picks = (
        1  # rows of the image from one row in SBUF to the next: a tap with a copy of its own needs no others
    )
    if padded and copies_y == kernel_rows:
        picks = stride_y
    # How taps and pixels meet along each axis: (stride, padding, dilation, taps, copies).
    axes = (
        (stride_y, padding_y, dilation_y, kernel_rows, copies_y),
        (stride_x, padding_x, dilation_x, kernel_columns, copies_x),
        padded,
        picks,
    )
    group_features = features // groups
    for group in range(groups):
        from_channel, from_feature = group * group_channels, group * group_features
        convolve(
            out[:, from_feature : from_feature + group_features, :, :],
            x[:, from_channel : from_channel + group_channels, :, :],
            weight[:, :, :, from_feature : from_feature + group_features],
            None if bias == None else bias[from_feature : from_feature + group_features],  # noqa: E711 (no `is`)
            axes,
        )
    return out


def element_bytes(tensor):
    """Return the size of an element; kernels take float32 and bfloat16."""
    return 4 if tensor.dtype == nl.float32 else 2


def copies_of(channels, kernel_rows, kernel_columns):
    """Return how many copies of the image share the partitions: (shifted down, shifted sideways).

    Only a handful of channels is worth copies to both sides, whose rows arrive in short pieces.
    """
    copies_y = max(1, min(kernel_rows, P // channels))
    copies_x = 1
    if channels <= FEW_CHANNELS and copies_y == kernel_rows:
        copies_x = max(1, min(kernel_columns, P // (channels * copies_y), MOST_COPIES // copies_y))
    return copies_y, copies_x


def has_full_tap(columns, width, stride, padding, dilation, taps):
    """Return whether some tap meets a pixel of the image for every column of the result: it can open the sums."""
    for tap in range(taps):
        first = tap * dilation - padding
        if first >= 0 and first + (columns - 1) * stride < width:
            return True
    return False


def convolve(out, x, weight, bias, axes):
    """One group: weights stay in SBUF for as many output channels as fit, bands of the image stream past them."""
    images, features, rows, columns = out.shape
    along_y, along_x = axes[0:2]
    steps = ((along_y[3] + along_y[4] - 1) // along_y[4]) * ((along_x[3] + along_x[4] - 1) // along_x[4])
    chunks = (x.shape[1] + P - 1) // P
    feature_bytes = chunks * steps * element_bytes(x)
    block = max(P, WEIGHT_BYTES // feature_bytes // P * P)
    assert feature_bytes * P <= 2 * WEIGHT_BYTES, "conv2d: C / groups * R * S is at most 16384 in float32"
    tile_columns = min(columns, BANK)
    tile_rows = min(rows, max(1, BANK // tile_columns))
    together = 1  # images whose pixels share one product
    if tile_rows == rows:
        together = min(images, BANK // (rows * columns))
    row_bytes = chunks * together * extent(tile_columns, along_x) * along_y[0] // axes[3] * element_bytes(x)
    band = tile_rows * max(1, LOAD_BYTES // (tile_rows * row_bytes))
    for from_feature in range(0, features, block):
        to_feature = min(from_feature + block, features)
        weights = load_weights(weight[:, :, :, from_feature:to_feature], axes)
        biases = load_bias(bias, from_feature, to_feature)
        for image in range(0, images, together):
            beyond = min(image + together, images)
            for top in range(0, rows, band):
                bottom = min(top + band, rows)
                for left in range(0, columns, tile_columns):
                    right = min(left + tile_columns, columns)
                    sides = pixels_between(left, right, columns, x.shape[3], axes)
                    parts = load_band(x[image:beyond, :, :, :], (top, bottom), sides, axes)
                    out_BOMN = out[image:beyond, from_feature:to_feature, top:bottom, left:right]
                    windows = windows_of(left, right, sides, x.shape[3], axes)
                    convolve_band(out_BOMN, parts, weights, biases, windows, axes, tile_rows)


def extent(outputs, along):
    """Return how many pixels of a copy so many outputs reach along one axis."""
    stride, dilation, taps, copies = along[0], along[2], along[3], along[4]
    return (outputs - 1) * stride + 1 + (taps - 1) // copies * copies * dilation


def pixels_between(left, right, columns, width, axes):
    """Return (first, end) of the image columns to load for these output columns; outside the image if it is padded."""
    along_x = axes[1]
    first = left * along_x[0] - along_x[1]
    end = first + extent(right - left, along_x)
    if axes[2]:
        return first, end
    if right - left == columns:
        return 0, width  # whole rows are one piece of memory
    return max(0, first), min(width, end)


def windows_of(left, right, sides, width, axes):
    """Return the steps of column taps, those that reach every output first.

    Each is (step, part of the copies that it uses, first output, end, first column in SBUF, stride).
    """
    stride, padding, dilation, taps, copies = axes[1]
    full, partial = [], []
    for step in range((taps + copies - 1) // copies):
        shift = step * copies * dilation - padding
        first, end = left, right
        if not axes[2]:
            first = max(left, (-shift + stride - 1) // stride)
            end = min(right, (width - 1 - shift) // stride + 1)
        if first < end:
            share = min(copies, taps - step * copies)  # the last step may have fewer taps
            window = (step, share, first - left, end - left, first * stride + shift - sides[0], stride)
            if end - first == right - left:
                full.append(window)
            else:
                partial.append(window)
    return full + partial


def load_weights(weight, axes):
    """Return a list of tiles [copies * C, R / copies, S / copies, O], one for each P channels."""
    channels, kernel_rows, kernel_columns, features = weight.shape
    copies_y, copies_x = axes[0][4], axes[1][4]
    steps_y = (kernel_rows + copies_y - 1) // copies_y
    steps_x = (kernel_columns + copies_x - 1) // copies_x
    tiles = []
    for first in range(0, channels, P):
        last = min(first + P, channels)
        span = last - first
        tile = nl.ndarray(
            (copies_y * copies_x * span, steps_y, steps_x, features), dtype=weight.dtype, buffer=nl.sbuf
        )
        for copy_x in range(copies_x):
            for copy_y in range(copies_y):
                place = (copy_x * copies_y + copy_y) * span
                taps = weight[first:last, copy_y:kernel_rows:copies_y, copy_x:kernel_columns:copies_x, :]
                nisa.dma_copy(
                    dst=tile[place : place + span, 0 : taps.shape[1], 0 : taps.shape[2], :], src=taps
                )
        tiles.append(tile)
    return tiles


def load_bias(bias, from_feature, to_feature):
    """Return a list of tiles [O, 1] @ SBUF, float32, one for each P output channels; or None."""
    if bias == None:  # noqa: E711
        return None
    tiles = []
    for first in range(from_feature, to_feature, P):
        last = min(first + P, to_feature)
        tile = nl.ndarray((last - first, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=bias[first:last].expand_dim(1))
        tiles.append(tile)
    return tiles


def load_band(x, rows, sides, axes):
    """Return tiles [copies * C, B, rows, columns] of the image, as far as these outputs reach, one for each P channels.

    There are zeros above and below the image, and where `sides` reach beyond it.
    """
    images, channels, height, width = x.shape
    along_y, along_x, picks = axes[0], axes[1], axes[3]
    copies_y, copies_x = along_y[4], along_x[4]
    tall = (extent(rows[1] - rows[0], along_y) - 1) // picks + 1
    wide = sides[1] - sides[0]
    tiles = []
    for first in range(0, channels, P):
        last = min(first + P, channels)
        span = last - first
        tile = nl.ndarray((copies_y * copies_x * span, images, tall, wide), dtype=x.dtype, buffer=nl.sbuf)
        pieces = []
        for copy_x in range(copies_x):
            x_range = overlap(sides[0] + copy_x * along_x[2], 1, wide, width)
            for copy_y in range(copies_y):
                start = rows[0] * along_y[0] - along_y[1] + copy_y * along_y[2]
                y_range = overlap(start, picks, tall, height)
                pieces.append(((copy_x * copies_y + copy_y) * span, y_range, x_range))
        clear_margins(tile, pieces)
        for place, y_range, x_range in pieces:
            if y_range[0] < y_range[1] and x_range[0] < x_range[1]:
                inside = x[:, first:last, y_range[2] : y_range[3] : picks, x_range[2] : x_range[3]]
                nisa.dma_copy(
                    dst=tile[place : place + span, :, y_range[0] : y_range[1], x_range[0] : x_range[1]],
                    src=inside.permute((1, 0, 2, 3)),
                )
        tiles.append(tile)
    return tiles


def overlap(start, step, count, size):
    """Return where positions start, start + step, ... lie inside [0, size): (first, end) of `count`, and in the image."""
    first = min(count, max(0, (-start + step - 1) // step))
    end = max(first, min(count, (size - 1 - start) // step + 1))
    return first, end, start + first * step, start + (end - 1) * step + 1


def clear_margins(tile, pieces):
    """Write zeros where some copy has no pixels of the image: bands along the four sides."""
    tall, wide = tile.shape[2:]
    top, bottom, left, right = 0, tall, 0, wide
    for _, y_range, x_range in pieces:
        top, bottom = max(top, y_range[0]), min(bottom, y_range[1])
        left, right = max(left, x_range[0]), min(right, x_range[1])
    if top >= bottom or left >= right:
        nisa.memset(dst=tile, value=0.0)
        return
    if top > 0:
        nisa.memset(dst=tile[:, :, 0:top, :], value=0.0)
    if bottom < tall:
        nisa.memset(dst=tile[:, :, bottom:tall, :], value=0.0)
    if left > 0:
        nisa.memset(dst=tile[:, :, top:bottom, 0:left], value=0.0)
    if right < wide:
        nisa.memset(dst=tile[:, :, top:bottom, right:wide], value=0.0)


def convolve_band(out, parts, weights, biases, windows, axes, tile_rows):
    """Write the outputs of one band: up to P output channels of up to 512 pixels at a time."""
    images, features, rows, columns = out.shape
    turn = 0
    for first in range(0, features, P):
        last = min(first + P, features)
        bias_sbuf = None
        if biases != None:  # noqa: E711
            bias_sbuf = biases[first // P]
        out_sbuf = nl.ndarray((last - first, images, rows, columns), dtype=out.dtype, buffer=nl.sbuf)
        for top in range(0, rows, tile_rows):
            bottom = min(top + tile_rows, rows)
            shape = (last - first, images, bottom - top, columns)
            sums = nl.ndarray(shape, dtype=nl.float32, buffer=nl.psum)
            accumulate(sums, parts, weights, (first, last), top, windows, axes)
            finish(out_sbuf[:, :, top:bottom, :], sums, bias_sbuf, turn)
            turn += 1
        nisa.dma_copy(dst=out[:, first:last, :, :].permute((1, 0, 2, 3)), src=out_sbuf)


def accumulate(sums, parts, weights, features, top, windows, axes):
    """Sum the products of all taps into sums [O, B, rows, columns]; `top` is their first row in the band."""
    dilation, taps, copies = axes[0][2], axes[0][3], axes[0][4]
    stride = axes[0][0] // axes[3]
    copies_x = axes[1][4]
    rows = sums.shape[2]
    begun = False
    for step_x, share_x, first, end, left, stride_x in windows:
        right = left + (end - first - 1) * stride_x + 1
        for step_y in range((taps + copies - 1) // copies):
            share = min(copies, taps - step_y * copies) * share_x
            above = top * stride + step_y * copies * dilation
            below = above + (rows - 1) * stride + 1
            for part, weight in zip(parts, weights):
                used = part.shape[0] // (copies * copies_x) * share
                nisa.nc_matmul(
                    dst=sums[:, :, :, first:end],
                    stationary=weight[0:used, step_y, step_x, features[0] : features[1]],
                    moving=part[0:used, :, above:below:stride, left:right:stride_x],
                    accumulate=begun,
                )
                begun = True


def finish(out_sbuf, sums, bias_sbuf, turn):
    """Add the bias and round; VectorE and ScalarE take turns to empty PSUM."""
    if turn % 2 == 0:
        if bias_sbuf == None:  # noqa: E711
            nisa.tensor_copy(dst=out_sbuf, src=sums, engine=nisa.engine.vector)
        else:
            nisa.tensor_scalar(
                dst=out_sbuf, data=sums, op0=nl.add, operand0=bias_sbuf, engine=nisa.engine.vector
            )
    elif bias_sbuf == None:  # noqa: E711
        nisa.activation(dst=out_sbuf, op=nl.copy, data=sums)  # gen2 has no tensor_copy on ScalarE
    else:
        nisa.activation(dst=out_sbuf, op=nl.copy, data=sums, bias=bias_sbuf)
