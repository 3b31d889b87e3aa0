"""Residual addition and root mean square normalisation in one pass: the sum is read from HBM never again.

Legend: T = tokens, H = hidden, P = partitions.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128


@nki.jit
def add_rms_norm(x, residual, gamma, eps):
    """Add x and residual [T, H] @ HBM, normalise the sum by its root mean square, scale by gamma [H].

    Returns: the normalised rows and the sum, both [T, H], dtype of x. Each is rounded once.
    """
    tokens, hidden = x.shape
    normal = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    added = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    partitions = min(tokens, P)
    gamma_sbuf = nl.ndarray((partitions, hidden), dtype=gamma.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=gamma_sbuf, src=gamma.expand_dim(0).broadcast(0, partitions))
    eps_sbuf = nl.ndarray((partitions, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=eps_sbuf, value=eps)
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        rows = last - first
        x_sbuf = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
        residual_sbuf = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :])
        nisa.dma_copy(dst=residual_sbuf, src=residual[first:last, :])
        sum_sbuf = nl.ndarray((rows, hidden), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=sum_sbuf, data1=x_sbuf, data2=residual_sbuf, op=nl.add)
        nisa.tensor_copy(dst=residual_sbuf, src=sum_sbuf)
        nisa.dma_copy(dst=added[first:last, :], src=residual_sbuf)

        squares = nl.ndarray((rows, hidden), dtype=nl.float32, buffer=nl.sbuf)
        total = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(dst=squares, op=nl.square, data=sum_sbuf, reduce_op=nl.add, reduce_res=total)
        scale = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=scale, op=nl.rsqrt, data=total, bias=eps_sbuf[0:rows, :], scale=1.0 / hidden)
        nisa.scalar_tensor_tensor(
            dst=x_sbuf,
            data=sum_sbuf,
            op0=nl.multiply,
            operand0=scale,
            op1=nl.multiply,
            operand1=gamma_sbuf[0:rows, :],
        )
        nisa.dma_copy(dst=normal[first:last, :], src=x_sbuf)
    return normal, added
