"""Group normalisation: a channel, or part of one, on each partition; TensorE joins the statistics of a group.

Legend: N = images, C = channels, S = pixels, G = groups, P = partitions, K = parts of a channel,
rows = (N, C, K) with S / K elements each; L = rows of one group.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
CHUNK = 512  # elements that one bn_stats takes
STEP_BYTES = 16 * 1024  # of x per partition and DMA
RESIDENT_BYTES = (
    64 * 1024
)  # of x per partition: what is longer is read twice, for statistics and for the result


@nki.jit
def group_norm(x, gamma=None, beta=None, groups=1, eps=1e-5):
    """Centre each group of channels of each image, divide by its standard deviation, scale and shift each channel.

    Args:
        x: [N, C, S] @ HBM, float32 or bfloat16. Any N and S.
        gamma, beta: [C] @ HBM, dtype of x, or None.
        groups: of C / groups channels each.
        eps: added to the variance; a Python float.
    Returns: [N, C, S] @ HBM, dtype of x.
    Accuracy: float32 throughout, variance of centred values, rounded once.
    """
    images, channels, pixels = x.shape
    assert channels % groups == 0, f"group_norm: {channels} channels do not divide into {groups} groups"
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    parts = channel_parts(images * channels, channels // groups, pixels)
    length = channels // groups * parts
    width = pixels // parts
    rows = images * channels * parts
    x_rows, out_rows = x.reshape((rows, width)), out.reshape((rows, width))
    eps_sbuf = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=eps_sbuf, value=eps)  # gen2 takes a bias only as a tile
    if length <= P:
        block = P // length * length
        averages = block_average(min(block, rows), length)
    else:
        block = length
        averages = nl.ndarray((P, P), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=averages, value=1.0 / length)
    for first in range(0, rows, block):
        last = min(first + block, rows)
        normalize_block(
            out_rows, x_rows, first, last, averages, gamma, beta, (channels, parts), eps_sbuf, length <= P
        )
    return out


def channel_parts(rows, group_channels, pixels):
    """Return into how many parts each channel is cut, so that few channels still occupy many partitions."""
    best = 1
    for parts in range(2, P + 1):
        if pixels % parts == 0 and rows * parts <= P and group_channels * parts <= P:
            best = parts
    return best


def block_average(rows, length):
    """Return the matrix that averages over groups of `length` neighbours: [rows, rows] @ SBUF, float32."""
    groups = rows // length
    full = nl.ndarray((rows, groups, length), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=full, value=1.0 / length)
    upper = nl.ndarray((rows, groups, length), dtype=nl.float32, buffer=nl.sbuf)
    nisa.affine_select(
        dst=upper,
        pattern=[[-length, groups], [0, length]],
        channel_multiplier=1,
        on_true_tile=full,
        on_false_value=0.0,
        cmp_op=nl.greater_equal,
    )
    averages = nl.ndarray((rows, groups, length), dtype=nl.float32, buffer=nl.sbuf)
    nisa.affine_select(
        dst=averages,
        pattern=[[length, groups], [0, length]],
        channel_multiplier=-1,
        on_true_tile=upper,
        on_false_value=0.0,
        cmp_op=nl.greater_equal,
        offset=length - 1,
    )
    return averages.reshape((rows, rows))


def normalize_block(
    out_rows, x_rows, first, last, averages, gamma, beta, channel_layout, eps_sbuf, single_tile
):
    """Normalize rows [first, last): whole groups that share one tile, or one group that takes several."""
    width = x_rows.shape[1]
    size = 4 if x_rows.dtype == nl.float32 else 2
    starts = range(first, last, P)
    resident = len(starts) * width * size <= RESIDENT_BYTES
    statistics = []
    kept = []
    for start in starts:
        rows = min(P, last - start)
        tiles = load_row_steps(x_rows[start : start + rows, :]) if resident else []
        kept.append(tiles)
        statistics.append(row_statistics(x_rows[start : start + rows, :], tiles))
    mean = average_of(averages, statistics, 0, single_tile)
    for (
        statistic
    ) in statistics:  # the second moment around the group's mean: variance + (mean - group mean)^2
        rows = statistic.shape[0]
        distance = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=distance, data1=statistic[:, 0:1], data2=mean[0:rows, :], op=nl.subtract)
        nisa.scalar_tensor_tensor(
            dst=statistic[:, 1:2],
            data=distance,
            op0=nl.multiply,
            operand0=distance,
            op1=nl.add,
            operand1=statistic[:, 1:2],
        )
    variance = average_of(averages, statistics, 1, single_tile)
    inverse = nl.ndarray(variance.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=inverse, op=nl.rsqrt, data=variance, bias=eps_sbuf[0 : variance.shape[0], :])
    for index in range(len(starts)):
        start = starts[index]
        rows = min(P, last - start)
        scale, shift = scale_and_shift(
            gamma, beta, mean[0:rows, :], inverse[0:rows, :], start, channel_layout
        )
        apply_rows(
            out_rows[start : start + rows, :], x_rows[start : start + rows, :], kept[index], scale, shift
        )


def load_row_steps(x_hbm):
    """Return x [rows, W] in SBUF, as tiles of at most STEP_BYTES per partition."""
    rows, width = x_hbm.shape
    step = STEP_BYTES // (4 if x_hbm.dtype == nl.float32 else 2)
    tiles = []
    for start in range(0, width, step):
        stop = min(start + step, width)
        tile = nl.ndarray((rows, stop - start), dtype=x_hbm.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x_hbm[:, start:stop])
        tiles.append(tile)
    return tiles


def row_statistics(x_hbm, tiles):
    """Return mean and variance of each row: [rows, 2] @ SBUF, float32. Rows that are not resident are read here."""
    rows, width = x_hbm.shape
    step = STEP_BYTES // (4 if x_hbm.dtype == nl.float32 else 2)
    steps = (width + step - 1) // step
    chunks = (width + CHUNK - 1) // CHUNK  # a step is a multiple of a chunk
    partial = nl.ndarray((rows, chunks, 6), dtype=nl.float32, buffer=nl.sbuf)
    chunk = 0
    for index in range(steps):
        start = index * step
        stop = min(start + step, width)
        tile = tiles[index] if len(tiles) > 0 else load_row_steps(x_hbm[:, start:stop])[0]
        for column in range(0, stop - start, CHUNK):
            end = min(column + CHUNK, stop - start)
            nisa.bn_stats(dst=partial[:, chunk, :], data=tile[:, column:end])
            chunk += 1
    statistic = nl.ndarray((rows, 2), dtype=nl.float32, buffer=nl.sbuf)
    nisa.bn_aggr(dst=statistic, data=partial)
    return statistic


def average_of(averages, statistics, column, single_tile):
    """Return the average of one column of the statistics over each group, on every row of it: [rows, 1] @ SBUF."""
    out_rows = statistics[0].shape[0] if single_tile else P
    total = nl.ndarray((out_rows, 1), dtype=nl.float32, buffer=nl.psum)
    for index in range(len(statistics)):
        rows = statistics[index].shape[0]
        nisa.nc_matmul(
            dst=total,
            stationary=averages[0:rows, 0:out_rows],
            moving=statistics[index][:, column : column + 1],
            accumulate=index > 0,
        )
    average = nl.ndarray((out_rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=average, src=total, engine=nisa.engine.vector)
    return average


def scale_and_shift(gamma, beta, mean, inverse, start, channel_layout):
    """Return scale = gamma / deviation and shift = beta - mean * scale of each row: [rows, 1] @ SBUF, float32."""
    rows = mean.shape[0]
    scale = inverse
    if gamma != None:  # noqa: E711 (the NKI compiler has no `is`)
        gain = load_parameter(gamma, start, rows, channel_layout)
        scale = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=scale, data1=gain, data2=inverse, op=nl.multiply)
    shift = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=shift, data=mean, op0=nl.multiply, operand0=-1.0, op1=nl.multiply, operand1=scale
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


def apply_rows(out_hbm, x_hbm, tiles, scale, shift):
    """Write x * scale + shift of each row; ScalarE, because VectorE has found the statistics."""
    width = x_hbm.shape[1]
    step = STEP_BYTES // (4 if x_hbm.dtype == nl.float32 else 2)
    for index in range((width + step - 1) // step):
        start = index * step
        stop = min(start + step, width)
        tile = tiles[index] if len(tiles) > 0 else load_row_steps(x_hbm[:, start:stop])[0]
        nisa.activation(dst=tile, op=nl.copy, data=tile, scale=scale, bias=shift)
        nisa.dma_copy(dst=out_hbm[:, start:stop], src=tile)
