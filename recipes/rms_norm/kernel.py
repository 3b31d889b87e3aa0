"""Root mean square normalisation: features on partitions for a few tokens, else tokens on partitions, several to each.

Legend: T = tokens, H = hidden, P = partitions, R = tokens of one partition, C = H / P (features per partition).
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
FEW_TOKENS = 8  # up to here the features are spread over the partitions
BLOCK_BYTES = 8 * 1024  # of scratch columns per partition, in float32
TILE_BYTES = 2 * 1024  # of x per partition and DMA at least: short rows travel together


@nki.jit
def rms_norm(x, gamma=None, eps=1e-6, offset=0.0):
    """Divide each row by its root mean square and scale each feature by offset + gamma.

    Args:
        x: [T, H] @ HBM, float32 or bfloat16. Any T; H up to 16384.
        gamma: [H] @ HBM, dtype of x or narrower, or None for no gain.
        eps: added to the mean square; a Python float.
        offset: added to gamma; 1.0 for layers that keep their gain as 1 + w (Gemma).
    Returns: [T, H] @ HBM, dtype of x.
    Accuracy: float32 throughout, rounded once. Models round before gamma (Llama), or do not (OLMo2, Gemma): one
    rounding is within the noise of both.
    """
    if gamma != None:  # noqa: E711 (the NKI compiler has no `is`)
        fits = gamma.dtype == x.dtype or x.dtype == nl.float32
        assert fits, "rms_norm: gamma must have the dtype of x, or a narrower one beside float32"
    tokens, hidden = x.shape
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    eps_sbuf = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=eps_sbuf, value=eps)  # gen2 takes a bias only as a tile
    if tokens <= FEW_TOKENS and hidden % P == 0:
        normalize_spread(out, x, gamma, eps_sbuf, offset)
    else:
        normalize_rows(out, x, gamma, eps_sbuf, offset)
    return out


def load_gain(gamma_hbm, shape, offset):
    """Return gamma in SBUF, plus offset: in float32 when there is one, because 1 + w has more digits than w."""
    loaded = nl.ndarray(shape, dtype=gamma_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=loaded, src=gamma_hbm)
    if offset == 0.0:
        return loaded
    gain = loaded
    if gamma_hbm.dtype != nl.float32:
        gain = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=gain, data=loaded, op0=nl.add, operand0=offset, engine=nisa.engine.vector)
    return gain


def normalize_spread(out, x, gamma, eps_sbuf, offset):
    """Few tokens: partition p holds features [p * C, (p + 1) * C) of every token, so all lanes work on each.

    A matmul with a matrix of ones sums over the partitions and hands every partition the total at once.
    """
    tokens, hidden = x.shape
    run = hidden // P
    x_PTC = nl.ndarray((P, tokens, run), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_PTC, src=x.reshape((tokens, P, run)).permute((1, 0, 2)))

    squares_PTC = nl.ndarray((P, tokens, run), dtype=nl.float32, buffer=nl.sbuf)
    partial_PT = nl.ndarray((P, tokens), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=squares_PTC, op=nl.square, data=x_PTC)
    nisa.tensor_reduce(dst=partial_PT, op=nl.add, data=squares_PTC, axis=2)
    ones_PP = nl.ndarray((P, P), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=ones_PP, value=1.0)
    total_PT = nl.ndarray((P, tokens), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=total_PT, stationary=ones_PP, moving=partial_PT, accumulate=False)
    scale_PT = nl.ndarray((P, tokens), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=scale_PT, op=nl.rsqrt, data=total_PT, bias=eps_sbuf, scale=1.0 / hidden)

    scale_view = scale_PT.expand_dim(2).broadcast(2, run)
    if gamma == None:  # noqa: E711
        nisa.tensor_tensor(dst=x_PTC, data1=x_PTC, data2=scale_view, op=nl.multiply)
    else:
        gamma_PC = load_gain(gamma.reshape((P, run)), (P, run), offset)
        normal_PTC = squares_PTC  # float32 scratch that has done its work
        nisa.tensor_tensor(dst=normal_PTC, data1=x_PTC, data2=scale_view, op=nl.multiply)
        gamma_view = gamma_PC.expand_dim(1).broadcast(1, tokens)
        nisa.tensor_tensor(dst=x_PTC, data1=normal_PTC, data2=gamma_view, op=nl.multiply)
    nisa.dma_copy(dst=out.reshape((tokens, P, run)).permute((1, 0, 2)), src=x_PTC)


def normalize_rows(out, x, gamma, eps_sbuf, offset):
    """Many tokens: partition p of a tile holds R consecutive tokens. gamma is copied to all partitions once."""
    tokens, hidden = x.shape
    rows = min(tokens, P)
    most = max(1, TILE_BYTES // (hidden * (4 if x.dtype == nl.float32 else 2)))
    gamma_sbuf = None
    if gamma != None:  # noqa: E711
        gamma_sbuf = load_gain(gamma.expand_dim(0).broadcast(0, rows), (rows, hidden), offset)
    first = 0
    while first < tokens:
        left = tokens - first
        each = min(most, max(1, left // P))
        parts = min(P, left // each)
        last = first + parts * each
        normalize_tile(
            out[first:last, :].reshape((parts, each, hidden)),
            x[first:last, :].reshape((parts, each, hidden)),
            gamma_sbuf,
            eps_sbuf[0:parts, :],
        )
        first = last


def normalize_tile(out_hbm, x_hbm, gamma_sbuf, eps_sbuf):
    """Normalize [parts, R, H], from load to store."""
    parts, each, hidden = x_hbm.shape
    x_sbuf = nl.ndarray(x_hbm.shape, dtype=x_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_sbuf, src=x_hbm)
    totals = nl.ndarray((parts, each), dtype=nl.float32, buffer=nl.sbuf)
    for row in range(each):
        sum_of_squares(totals[:, row : row + 1], x_sbuf[:, row, :])
    scale_sbuf = nl.ndarray((parts, each), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=scale_sbuf, op=nl.rsqrt, data=totals, bias=eps_sbuf, scale=1.0 / hidden)
    for row in range(each):
        scale_by(x_sbuf[:, row, :], scale_sbuf[:, row : row + 1], gamma_sbuf)
    nisa.dma_copy(dst=out_hbm, src=x_sbuf)


def sum_of_squares(total, x_sbuf):
    """Write the sum of squares of each row of x [parts, H] to total [parts, 1]. ScalarE sums as it squares."""
    rows, hidden = x_sbuf.shape
    block = BLOCK_BYTES // 4
    blocks = (hidden + block - 1) // block
    sums = total
    if blocks > 1:
        sums = nl.ndarray((rows, blocks), dtype=nl.float32, buffer=nl.sbuf)
    for index in range(blocks):
        start = index * block
        stop = min(start + block, hidden)
        squares = nl.ndarray((rows, stop - start), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(
            dst=squares,
            op=nl.square,
            data=x_sbuf[:, start:stop],
            reduce_op=nl.add,
            reduce_res=sums[:, index : index + 1],
        )
    if blocks > 1:
        nisa.tensor_reduce(dst=total, op=nl.add, data=sums, axis=1)


def scale_by(x_sbuf, scale_sbuf, gamma_sbuf):
    """Turn x [parts, H] into x * scale * gamma: VectorE multiplies twice in float32 and rounds once."""
    if gamma_sbuf == None:  # noqa: E711
        nisa.tensor_scalar(
            dst=x_sbuf, data=x_sbuf, op0=nl.multiply, operand0=scale_sbuf, engine=nisa.engine.vector
        )
        return
    nisa.scalar_tensor_tensor(
        dst=x_sbuf,
        data=x_sbuf,
        op0=nl.multiply,
        operand0=scale_sbuf,
        op1=nl.multiply,
        operand1=gamma_sbuf[0 : x_sbuf.shape[0], :],
    )
