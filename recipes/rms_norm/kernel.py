"""Root mean square normalisation: features on partitions for a few tokens, else tokens on partitions.

Legend: T = tokens, H = hidden, P = partitions, C = H / P (features per partition).
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
FEW_TOKENS = 8  # up to here the features are spread over the partitions
BLOCK_BYTES = 8 * 1024  # of scratch columns per partition, in float32


@nki.jit
def rms_norm(x, gamma, eps):
    """Divide each row by its root mean square and scale each feature by gamma.

    Args:
        x: [T, H] @ HBM, float32 or bfloat16. Any T; H up to 16384 in float32.
        gamma: [H] @ HBM, dtype of x.
        eps: added to the mean square; a Python float.
    Returns: [T, H] @ HBM, dtype of x.
    Accuracy: float32 throughout, rounded once. Models round before gamma (Llama), or do not (OLMo2): one rounding is
    within the noise of both.
    """
    assert gamma.dtype == x.dtype, "rms_norm: gamma must have the dtype of x"
    tokens, hidden = x.shape
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    eps_sbuf = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=eps_sbuf, value=eps)  # gen2 takes a bias only as a tile
    if tokens <= FEW_TOKENS and hidden % P == 0:
        normalize_spread(out, x, gamma, eps_sbuf)
    else:
        normalize_rows(out, x, gamma, eps_sbuf)
    return out


def normalize_spread(out, x, gamma, eps_sbuf):
    """Few tokens: partition p holds features [p * C, (p + 1) * C) of every token, so all lanes work on each.

    A matmul with a matrix of ones sums over the partitions and hands every partition the total at once.
    """
    tokens, hidden = x.shape
    run = hidden // P
    x_PTC = nl.ndarray((P, tokens, run), dtype=x.dtype, buffer=nl.sbuf)
    gamma_PC = nl.ndarray((P, run), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_PTC, src=x.reshape((tokens, P, run)).permute((1, 0, 2)))
    nisa.dma_copy(dst=gamma_PC, src=gamma.reshape((P, run)))

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

    normal_PTC = squares_PTC  # float32 scratch that has done its work
    nisa.tensor_tensor(
        dst=normal_PTC, data1=x_PTC, data2=scale_PT.expand_dim(2).broadcast(2, run), op=nl.multiply
    )
    nisa.tensor_tensor(
        dst=x_PTC, data1=normal_PTC, data2=gamma_PC.expand_dim(1).broadcast(1, tokens), op=nl.multiply
    )
    nisa.dma_copy(dst=out.reshape((tokens, P, run)).permute((1, 0, 2)), src=x_PTC)


def normalize_rows(out, x, gamma, eps_sbuf):
    """Many tokens: a token in each partition. gamma is copied to all partitions once."""
    tokens, hidden = x.shape
    rows = min(tokens, P)
    gamma_sbuf = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=gamma_sbuf, src=gamma.expand_dim(0).broadcast(0, rows))
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        normalize_tile(out[first:last, :], x[first:last, :], gamma_sbuf[0 : last - first, :], eps_sbuf)


def normalize_tile(out_hbm, x_hbm, gamma_sbuf, eps_sbuf):
    """Normalize up to P rows, from load to store."""
    rows = x_hbm.shape[0]
    x_sbuf = nl.ndarray(x_hbm.shape, dtype=x_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_sbuf, src=x_hbm)
    scale_sbuf = inverse_root_mean_square(x_sbuf, eps_sbuf[0:rows, :])
    scale_by(x_sbuf, scale_sbuf, gamma_sbuf)
    nisa.dma_copy(dst=out_hbm, src=x_sbuf)


def inverse_root_mean_square(x_sbuf, eps_sbuf):
    """Return 1 / sqrt(mean(x^2) + eps) of each row: [rows, 1] @ SBUF, float32. ScalarE sums as it squares."""
    rows, hidden = x_sbuf.shape
    block = BLOCK_BYTES // 4
    blocks = (hidden + block - 1) // block
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
    total = sums
    if blocks > 1:
        total = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=total, op=nl.add, data=sums, axis=1)
    scale_sbuf = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=scale_sbuf, op=nl.rsqrt, data=total, bias=eps_sbuf, scale=1.0 / hidden)
    return scale_sbuf


def scale_by(x_sbuf, scale_sbuf, gamma_sbuf):
    """Turn x into x * scale * gamma: VectorE multiplies twice in float32 and rounds once."""
    nisa.scalar_tensor_tensor(
        dst=x_sbuf,
        data=x_sbuf,
        op0=nl.multiply,
        operand0=scale_sbuf,
        op1=nl.multiply,
        operand1=gamma_sbuf,
    )
