"""Global response normalisation: a matrix product with ones sums over the positions, which lie on the partitions.

Legend: B = images, T = positions of an image, C = channels, P = partitions.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 values of a PSUM bank: the channels of one matrix product
KEPT_BYTES = 48 * 1024  # of an image per partition: up to here it is read once, beyond it twice
EPSILON = 1e-6  # ConvNeXt V2 has it in its code, not among its attributes


@nki.jit
def global_response_norm(x, gain, shift):
    """Scale each channel by its norm over the image relative to the mean norm, add shift and x itself.

    Args:
        x: [B, T, C] @ HBM, float32 or bfloat16. Any B and T; C up to 3072.
        gain: [C] @ HBM, dtype of x.
        shift: [C] @ HBM, dtype of x.
    Returns: [B, T, C] @ HBM, dtype of x.
    Accuracy: float32 throughout, rounded once.
    """
    assert gain.dtype == x.dtype, "global_response_norm: gain must have the dtype of x"
    images, positions, channels = x.shape
    out = nl.ndarray((images, positions, channels), dtype=x.dtype, buffer=nl.shared_hbm)
    rows = min(positions, P)
    gain_sbuf = nl.ndarray((rows, channels), dtype=x.dtype, buffer=nl.sbuf)
    shift_sbuf = nl.ndarray((rows, channels), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=gain_sbuf, src=gain.expand_dim(0).broadcast(0, rows))
    nisa.dma_copy(dst=shift_sbuf, src=shift.expand_dim(0).broadcast(0, rows))
    ones = nl.ndarray((rows, rows), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    for image in range(images):
        normalize_image(out[image], x[image], gain_sbuf, shift_sbuf, ones)
    return out


def normalize_image(out_hbm, x_hbm, gain_sbuf, shift_sbuf, ones):
    """One image [T, C]: sum squares over all tiles, make one factor per channel, apply it to all tiles."""
    positions, channels = x_hbm.shape
    rows = ones.shape[0]
    tiles = (positions + P - 1) // P
    keep = tiles * channels * (4 if x_hbm.dtype == nl.float32 else 2) <= KEPT_BYTES
    total = nl.ndarray((rows, channels), dtype=nl.float32, buffer=nl.psum)  # the same on every partition
    kept = []
    for tile in range(tiles):
        first = tile * P
        last = min(first + P, positions)
        x_sbuf = load(x_hbm[first:last, :])
        add_squares(total, x_sbuf, ones, tile)
        if keep:
            kept.append(x_sbuf)
    factor = channel_factor(total, gain_sbuf)
    for tile in range(tiles):
        first = tile * P
        last = min(first + P, positions)
        x_sbuf = kept[tile] if keep else load(x_hbm[first:last, :])
        apply_factor(out_hbm[first:last, :], x_sbuf, factor, shift_sbuf)


def load(x_hbm):
    """Copy up to P positions to SBUF."""
    x_sbuf = nl.ndarray(x_hbm.shape, dtype=x_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_sbuf, src=x_hbm)
    return x_sbuf


def add_squares(total, x_sbuf, ones, tile):
    """Add the squares of up to P positions to total [rows, C] @ PSUM, a bank of channels at a time."""
    count, channels = x_sbuf.shape
    squares = nl.ndarray((count, channels), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=squares, op=nl.square, data=x_sbuf)
    for start in range(0, channels, BANK):
        stop = min(start + BANK, channels)
        nisa.nc_matmul(
            dst=total[:, start:stop],
            stationary=ones[0:count, :],
            moving=squares[:, start:stop],
            accumulate=tile > 0,
        )


def channel_factor(total, gain_sbuf):
    """Return gain * norm / (mean norm + epsilon) + 1: [rows, C] @ SBUF, float32; `+ 1` is x itself."""
    rows, channels = total.shape
    norm = nl.ndarray((rows, channels), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=norm, op=nl.sqrt, data=total)
    mean = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=mean, op=nl.add, data=norm, axis=1)
    nisa.tensor_scalar(
        dst=mean, data=mean, op0=nl.multiply, operand0=1.0 / channels, op1=nl.add, operand1=EPSILON
    )
    inverse = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=mean)
    nisa.scalar_tensor_tensor(
        dst=norm, data=norm, op0=nl.multiply, operand0=inverse, op1=nl.multiply, operand1=gain_sbuf
    )
    nisa.tensor_scalar(dst=norm, data=norm, op0=nl.add, operand0=1.0)
    return norm


def apply_factor(out_hbm, x_sbuf, factor, shift_sbuf):
    """Store x * factor + shift for up to P positions; the product is kept in float32 and rounded once."""
    count, channels = x_sbuf.shape
    scaled = nl.ndarray((count, channels), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=scaled, data1=x_sbuf, data2=factor[0:count, :], op=nl.multiply)
    nisa.tensor_tensor(dst=x_sbuf, data1=scaled, data2=shift_sbuf[0:count, :], op=nl.add)
    nisa.dma_copy(dst=out_hbm, src=x_sbuf)
