"""Patch embedding: a convolution whose kernel equals its stride, as one matrix product over patches.

Legend: B = images, C = channels, H, W = image, R, S = rows and columns of a patch, O = output features, T = patches,
P = partitions.

Rows of the image lie on partitions as they are in memory, row i of every patch of channel c on partition c * R + i;
those of a feature map with many channels all on partition c. The columns of a patch are a stride over them. So patches
are never gathered: a DMA of patches would move pieces of S elements.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 elements of one PSUM bank, and the widest `moving` of gen2 and gen3
WIDEST = 4 * BANK  # columns of one pass: half of PSUM fills while half drains
WEIGHT_BYTES = 64 * 1024  # of weights per partition, of 176 KiB on gen2
LEAST_COLUMNS = 64  # of one pass
LOAD_BYTES = 8 * 1024  # of x per partition and DMA
TILE_BYTES = 32 * 1024  # of x per partition for the patches of one product
MANY_CHANNELS = 64  # from here each channel has a partition of its own, and its rows are one piece of memory


@nki.jit
def patch_embed(x, weight, bias=None):
    """Multiply each patch of the image by the weights and add the bias.

    Args:
        x: [B, C, H, W] @ HBM, float32 or bfloat16. What is left beyond whole patches is not read.
        weight: [C, R, S, O] @ HBM, dtype of x. R at most 128.
        bias: [O] @ HBM, dtype of x, or None.
    Returns: [B, (H // R) * (W // S), O] @ HBM, dtype of x: patches in reading order.
    Accuracy: products and sums in float32, rounded once.
    """
    images, channels, height, width = x.shape
    patch_rows, patch_columns, features = weight.shape[1:]
    assert weight.shape[0] == channels, "patch_embed: weight must be [C, R, S, O] for x [B, C, H, W]"
    assert weight.dtype == x.dtype, "patch_embed: weight must have the dtype of x"
    assert patch_rows <= P, "patch_embed: a patch has at most 128 rows"
    rows, columns = height // patch_rows, width // patch_columns
    out = nl.ndarray((images, rows * columns, features), dtype=x.dtype, buffer=nl.shared_hbm)
    out_TO = out.reshape((images * rows * columns, features))
    if height == patch_rows and width == patch_columns:
        embed_rows(out_TO, x, weight, bias)
    else:
        embed_images(out_TO, x[:, :, 0 : rows * patch_rows, :], weight, bias)
    return out


def element_bytes(tensor):
    """Return the size of an element; kernels take float32 and bfloat16."""
    return 4 if tensor.dtype == nl.float32 else 2


def columns_per_pass(features, products, item_bytes):
    """Return how many output features fit SBUF and PSUM at once, if `products` rows of weights meet a partition."""
    fits = WEIGHT_BYTES // (products * item_bytes)
    assert fits >= LEAST_COLUMNS, "patch_embed: a patch has too many elements for SBUF"
    unit = BANK if fits >= BANK else LEAST_COLUMNS
    return min(features, WIDEST, fits - fits % unit)


def shifts_of(channel_rows, patch_columns):
    """Return how many shifted copies of the image share the partitions: a divisor of the columns of a patch."""
    shifts = min(P // channel_rows, patch_columns)
    while patch_columns % shifts != 0:
        shifts -= 1
    return shifts


def embed_images(out_TO, x, weight, bias):
    """Images of several patches: weights stay in SBUF, bands of image rows stream past them.

    Few channels share the partitions with the rows of a patch and with shifted copies; many fill them alone.
    """
    images, channels, height, width = x.shape
    patch_rows, patch_columns, features = weight.shape[1:]
    rows, columns = height // patch_rows, width // patch_columns
    x_BCHRW = x.reshape_dim(2, (rows, patch_rows))
    together, shifts, free_rows = P, 1, patch_rows  # free: not on partitions
    if channels < MANY_CHANNELS:
        together, free_rows = P // patch_rows, 1
        if channels < together:
            together = channels
            shifts = shifts_of(channels * patch_rows, patch_columns)
        x_BCRHFW = x_BCHRW.permute((0, 1, 3, 2, 4)).expand_dim(4)
    else:
        x_BCRHFW = x_BCHRW.expand_dim(2)
    weight_CRFSO = weight.reshape((channels, patch_rows // free_rows, free_rows, patch_columns, features))
    chunks = (channels + together - 1) // together
    row_bytes = chunks * free_rows * width * element_bytes(x)
    tile_rows = max(1, min(P // columns, TILE_BYTES // row_bytes))
    band = tile_rows * max(1, LOAD_BYTES // (tile_rows * row_bytes))
    products = chunks * free_rows * patch_columns // shifts
    pass_width = columns_per_pass(features, products, element_bytes(x))
    for start in range(0, features, pass_width):
        stop = min(start + pass_width, features)
        weights = load_weights(weight_CRFSO[:, :, :, :, start:stop], together, shifts)
        bias_sbuf = load_bias(bias, start, stop)
        for image in range(images):
            for top in range(0, rows, band):
                bottom = min(top + band, rows)
                parts = load_band(x_BCRHFW[image, :, :, top:bottom, :, :], together, shifts, patch_columns)
                first = (image * rows + top) * columns
                out_band = out_TO[first : first + (bottom - top) * columns, start:stop]
                embed_band(out_band, parts, weights, bias_sbuf, (tile_rows, columns), patch_columns)


def load_weights(weight_CRFSO, together, shifts):
    """Return a list with one tile [shifts * channels * R, F, S / shifts, O] for each group of channels."""
    channels, patch_rows, free_rows, patch_columns, features = weight_CRFSO.shape
    step = patch_columns // shifts
    tiles = []
    for first in range(0, channels, together):
        last = min(first + together, channels)
        span = (last - first) * patch_rows
        tile = nl.ndarray(
            (shifts * span, free_rows, step, features), dtype=weight_CRFSO.dtype, buffer=nl.sbuf
        )
        for shift in range(shifts):
            nisa.dma_copy(
                dst=tile[shift * span : (shift + 1) * span, :, :, :],
                src=weight_CRFSO[first:last, :, :, shift * step : (shift + 1) * step, :],
            )
        tiles.append(tile)
    return tiles


def load_bias(bias, start, stop):
    """Return the bias as one row [1, O] @ SBUF, or None."""
    if bias == None:  # noqa: E711 (the NKI compiler has no `is`)
        return None
    bias_sbuf = nl.ndarray((1, stop - start), dtype=bias.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=bias_sbuf, src=bias[start:stop].expand_dim(0))
    return bias_sbuf


def load_band(x_CRHFW, together, shifts, patch_columns):
    """Return a list of tiles [shifts * channels * R, H, F, W]: copy n begins n * S / shifts columns later."""
    channels, patch_rows, rows, free_rows, width = x_CRHFW.shape
    step = patch_columns // shifts
    tiles = []
    for first in range(0, channels, together):
        last = min(first + together, channels)
        span = (last - first) * patch_rows
        tile = nl.ndarray((shifts * span, rows, free_rows, width), dtype=x_CRHFW.dtype, buffer=nl.sbuf)
        for shift in range(shifts):
            nisa.dma_copy(
                dst=tile[shift * span : (shift + 1) * span, :, :, 0 : width - shift * step],
                src=x_CRHFW[first:last, :, :, :, shift * step : width],
            )
        tiles.append(tile)
    return tiles


def embed_band(out_TO, parts, weights, bias_sbuf, tile, patch_columns):
    """Embed up to 128 patches at a time: some whole rows of patches (`tile`), or parts of one row that has more."""
    rows, free_rows = parts[0].shape[1:3]
    step = weights[0].shape[2]
    tile_rows, columns = tile
    tile_columns = min(columns, P)
    for top in range(0, rows, tile_rows):
        bottom = min(top + tile_rows, rows)
        for left in range(0, columns, tile_columns):
            right = min(left + tile_columns, columns)
            operands = []
            for part, weight in zip(parts, weights):
                for row in range(free_rows):
                    for column in range(step):
                        begin = left * patch_columns + column
                        end = (right - 1) * patch_columns + column + 1
                        x_sbuf = part[:, top:bottom, row, begin:end:patch_columns]
                        operands.append((x_sbuf, weight[:, row, column, :]))
            first = top * columns + left
            last = first + (bottom - top) * (right - left)
            multiply(out_TO[first:last, :], operands, bias_sbuf, top // tile_rows)


def embed_rows(out_TO, x, weight, bias):
    """One patch to an image, as video processors deliver them: a patch is a row of memory, which TensorE turns."""
    patches, features = out_TO.shape
    products = x.shape[1] * x.shape[2] * x.shape[3]
    x_TK = x.reshape((patches, products))
    weight_KO = weight.reshape((products, features))
    pass_width = columns_per_pass(features, (products + P - 1) // P, element_bytes(x))
    for start in range(0, features, pass_width):
        stop = min(start + pass_width, features)
        weights = []
        for first in range(0, products, P):
            last = min(first + P, products)
            tile = nl.ndarray((last - first, stop - start), dtype=weight.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=tile, src=weight_KO[first:last, start:stop])
            weights.append(tile)
        bias_sbuf = load_bias(bias, start, stop)
        for first in range(0, patches, P):
            last = min(first + P, patches)
            turned = load_turned(x_TK[first:last, :])
            operands = []
            for chunk in range(len(weights)):
                operands.append((turned[chunk], weights[chunk]))
            multiply(out_TO[first:last, start:stop], operands, bias_sbuf, first // P)


def load_turned(x_TK):
    """Return up to 128 rows as a list of tiles [K, T] of up to 128 products each. TensorE transposes."""
    tokens, products = x_TK.shape
    rows_sbuf = nl.ndarray((tokens, products), dtype=x_TK.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=rows_sbuf, src=x_TK)
    tiles = []
    for first in range(0, products, P):
        last = min(first + P, products)
        flipped = nl.ndarray((last - first, tokens), dtype=x_TK.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=flipped, data=rows_sbuf[:, first:last], engine=nisa.engine.tensor)
        tile = nl.ndarray((last - first, tokens), dtype=x_TK.dtype, buffer=nl.sbuf)
        nisa.tensor_copy(dst=tile, src=flipped, engine=nisa.engine.vector)
        tiles.append(tile)
    return tiles


def multiply(out_hbm, operands, bias_sbuf, turn):
    """Store the sum of the products of all (stationary, moving) pairs, plus the bias: one more product, with ones.

    VectorE and ScalarE take turns to empty PSUM.
    """
    tokens, features = out_hbm.shape
    sums = nl.ndarray((tokens, features), dtype=nl.float32, buffer=nl.psum)
    ones_sbuf = nl.ndarray((1, tokens), dtype=out_hbm.dtype, buffer=nl.sbuf)
    if bias_sbuf != None:  # noqa: E711
        nisa.memset(dst=ones_sbuf, value=1.0)
    out_sbuf = nl.ndarray((tokens, features), dtype=out_hbm.dtype, buffer=nl.sbuf)
    for start in range(0, features, BANK):
        stop = min(start + BANK, features)
        for number in range(len(operands)):
            stationary, moving = operands[number]
            nisa.nc_matmul(
                dst=sums[:, start:stop],
                stationary=stationary,
                moving=moving[:, start:stop],
                accumulate=number > 0,
            )
        if bias_sbuf != None:  # noqa: E711
            nisa.nc_matmul(
                dst=sums[:, start:stop],
                stationary=ones_sbuf,
                moving=bias_sbuf[:, start:stop],
                accumulate=True,
            )
        if (start // BANK + turn) % 2 == 0:
            nisa.tensor_copy(dst=out_sbuf[:, start:stop], src=sums[:, start:stop], engine=nisa.engine.vector)
        else:  # gen2 has no tensor_copy on ScalarE
            nisa.activation(dst=out_sbuf[:, start:stop], op=nl.copy, data=sums[:, start:stop])
    nisa.dma_copy(dst=out_hbm, src=out_sbuf)
