"""One-dimensional convolution: the products of all kernel taps meet in PSUM, and no window is ever gathered.

Legend: B = sequences, C = input channels, L = length, K = taps, O = output channels, N = length of the result,
P = partitions.

Channels lie on partitions. For one tap, the elements that it meets are a strided view of the padded sequence in SBUF,
which is `moving`; the tap's weights [C, O] are `stationary`. Few channels leave partitions idle, so that copies of the
sequence, each shifted by a tap, fill them: one product then does the work of several taps.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 elements of one PSUM bank, and the widest `moving` of gen2 and gen3
WEIGHT_BYTES = 80 * 1024  # of weights per partition, of 176 KiB on gen2
LOAD_BYTES = 24 * 1024  # of x per partition and band
WIDEST = 4 * BANK  # outputs of one band


@nki.jit
def conv1d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Convolve sequences with weights and add the bias.

    Args:
        x: [B, C, L] @ HBM, float32 or bfloat16.
        weight: [C / groups, K, O] @ HBM, dtype of x. C / groups * K up to 16384.
        bias: [O] @ HBM, dtype of x, or None.
        stride, ...: Python integers; `padding` zeros are on both sides.
    Returns: [B, O, N] @ HBM, dtype of x.
    Accuracy: products and sums in float32, rounded once.
    """
    sequences, channels, length = x.shape
    group_channels, taps, features = weight.shape
    assert group_channels * groups == channels, "conv1d: weight must be [C / groups, K, O] for x [B, C, L]"
    assert weight.dtype == x.dtype, "conv1d: weight must have the dtype of x"
    outputs = (length + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    out = nl.ndarray((sequences, features, outputs), dtype=x.dtype, buffer=nl.shared_hbm)
    copies = max(1, min(taps, P // group_channels))
    along = (stride, padding, dilation, taps, copies)
    for first_group, end_group, first, last in passes_of(weight, groups, copies):
        width = features // groups
        base = first_group * width
        weights = load_weights(weight[:, :, base + first : (end_group - 1) * width + last], copies)
        for group in range(first_group, end_group):
            begin, end = group * width + first, group * width + last
            group_weights = []
            for tile in weights:
                group_weights.append(tile[:, :, begin - base - first : end - base - first])
            x_group = x[:, group * group_channels : (group + 1) * group_channels, :]
            convolve(out[:, begin:end, :], x_group, group_weights, load_bias(bias, begin, end), along)
    return out


def element_bytes(tensor):
    """Return the size of an element; kernels take float32 and bfloat16."""
    return 4 if tensor.dtype == nl.float32 else 2


def passes_of(weight, groups, copies):
    """Return what shares one load of weights, as (first group, end, first output channel in it, end).

    That is several whole groups, or some output channels of one.
    """
    channels, taps, features = weight.shape
    width = features // groups
    feature_bytes = (channels + P - 1) // P * ((taps + copies - 1) // copies) * element_bytes(weight)
    assert feature_bytes * P <= WEIGHT_BYTES, "conv1d: C / groups * K is at most 16384"
    together = WEIGHT_BYTES // (feature_bytes * width)
    block = width
    if together == 0:
        together, block = 1, WEIGHT_BYTES // feature_bytes // P * P
    passes = []
    for group in range(0, groups, together):
        for first in range(0, width, block):
            passes.append((group, min(group + together, groups), first, min(first + block, width)))
    return passes


def convolve(out, x, weights, biases, along):
    """One group, or some of its output channels: bands of the sequence stream past the weights."""
    sequences, outputs = out.shape[0], out.shape[2]
    chunks = (x.shape[1] + P - 1) // P
    tile = min(outputs, BANK)
    together = max(1, min(sequences, BANK // outputs))  # sequences whose elements share one product
    reach = chunks * together * extent(tile, along) * element_bytes(x)
    band = min(WIDEST, tile * max(1, LOAD_BYTES // reach))
    for sequence in range(0, sequences, together):
        beyond = min(sequence + together, sequences)
        for first in range(0, outputs, band):
            last = min(first + band, outputs)
            parts = load_band(x[sequence:beyond, :, :], first, last, along)
            convolve_band(out[sequence:beyond, :, first:last], parts, weights, biases, along)


def extent(outputs, along):
    """Return how many elements of a copy so many outputs reach."""
    stride, dilation, taps, copies = along[0], along[2], along[3], along[4]
    return (outputs - 1) * stride + 1 + (taps - 1) // copies * copies * dilation


def load_weights(weight, copies):
    """Return a list of tiles [copies * C, K / copies, O], one for each P channels: tap k is in step k // copies."""
    channels, taps, features = weight.shape
    tiles = []
    for first in range(0, channels, P):
        last = min(first + P, channels)
        span = last - first
        steps = (taps + copies - 1) // copies
        tile = nl.ndarray((copies * span, steps, features), dtype=weight.dtype, buffer=nl.sbuf)
        for copy in range(copies):
            every = weight[first:last, copy:taps:copies, :]
            nisa.dma_copy(dst=tile[copy * span : (copy + 1) * span, 0 : every.shape[1], :], src=every)
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


def load_band(x, first_output, end_output, along):
    """Return tiles [copies * C, B, elements], one for each P channels: the padded sequence as far as outputs reach."""
    sequences, channels, length = x.shape
    stride, padding, dilation, copies = along[0], along[1], along[2], along[4]
    wide = extent(end_output - first_output, along)
    tiles = []
    for first in range(0, channels, P):
        last = min(first + P, channels)
        span = last - first
        tile = nl.ndarray((copies * span, sequences, wide), dtype=x.dtype, buffer=nl.sbuf)
        clear_left, clear_right = 0, wide
        pieces = []
        for copy in range(copies):
            start = first_output * stride - padding + copy * dilation
            begin = min(wide, max(0, -start))
            end = max(begin, min(wide, length - start))
            clear_left, clear_right = max(clear_left, begin), min(clear_right, end)
            pieces.append((copy * span, start, begin, end))
        if clear_left > 0:
            nisa.memset(dst=tile[:, :, 0:clear_left], value=0.0)
        if clear_right < wide:
            nisa.memset(dst=tile[:, :, max(clear_left, clear_right) : wide], value=0.0)
        for place, start, begin, end in pieces:
            if begin < end:
                inside = x[:, first:last, start + begin : start + end]
                nisa.dma_copy(dst=tile[place : place + span, :, begin:end], src=inside.permute((1, 0, 2)))
        tiles.append(tile)
    return tiles


def convolve_band(out, parts, weights, biases, along):
    """Write the outputs of one band: up to P output channels of up to 512 elements at a time."""
    sequences, features, outputs = out.shape
    turn = 0
    for first in range(0, features, P):
        last = min(first + P, features)
        bias_sbuf = None
        if biases != None:  # noqa: E711
            bias_sbuf = biases[first // P]
        out_sbuf = nl.ndarray((last - first, sequences, outputs), dtype=out.dtype, buffer=nl.sbuf)
        for left in range(0, outputs, BANK):
            right = min(left + BANK, outputs)
            sums = nl.ndarray((last - first, sequences, right - left), dtype=nl.float32, buffer=nl.psum)
            accumulate(sums, parts, weights, first, left, along)
            finish(out_sbuf[:, :, left:right], sums, bias_sbuf, turn)
            turn += 1
        nisa.dma_copy(dst=out[:, first:last, :].permute((1, 0, 2)), src=out_sbuf)


def accumulate(sums, parts, weights, first_feature, first_output, along):
    """Sum the products of all taps into sums [O, B, N]."""
    stride, dilation, taps, copies = along[0], along[2], along[3], along[4]
    features, outputs = sums.shape[0], sums.shape[2]
    begun = False
    for step in range((taps + copies - 1) // copies):
        share = min(copies, taps - step * copies)  # the last step may have fewer taps
        left = first_output * stride + step * copies * dilation
        right = left + (outputs - 1) * stride + 1
        for part, weight in zip(parts, weights):
            used = part.shape[0] // copies * share
            nisa.nc_matmul(
                dst=sums,
                stationary=weight[0:used, step, first_feature : first_feature + features],
                moving=part[0:used, :, left:right:stride],
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
