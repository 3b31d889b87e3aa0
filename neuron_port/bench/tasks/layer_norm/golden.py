"""Layer normalisation in two passes over SBUF: mean, then variance of what is left.

Legend: T = tokens, H = hidden, P = partitions.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128


@nki.jit
def layer_norm(x, gamma, beta, eps):
    """Normalise rows of x [T, H] @ HBM, scale by gamma [H], shift by beta [H]. Returns [T, H], rounded once."""
    tokens, hidden = x.shape
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    partitions = min(tokens, P)
    gamma_sbuf = copy_to_rows(gamma, partitions)
    beta_sbuf = copy_to_rows(beta, partitions)
    eps_sbuf = nl.ndarray((partitions, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=eps_sbuf, value=eps)
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        rows = last - first
        x_sbuf = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :])
        total = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=total, op=nl.add, data=x_sbuf, axis=1)
        mean = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=mean, data=total, op0=nl.multiply, operand0=1.0 / hidden)
        centred = nl.ndarray((rows, hidden), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=centred, data=x_sbuf, op0=nl.subtract, operand0=mean)

        squares = nl.ndarray((rows, hidden), dtype=nl.float32, buffer=nl.sbuf)
        spread = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(dst=squares, op=nl.square, data=centred, reduce_op=nl.add, reduce_res=spread)
        scale = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=scale, op=nl.rsqrt, data=spread, bias=eps_sbuf[0:rows, :], scale=1.0 / hidden)
        nisa.scalar_tensor_tensor(
            dst=centred,
            data=centred,
            op0=nl.multiply,
            operand0=scale,
            op1=nl.multiply,
            operand1=gamma_sbuf[0:rows, :],
        )
        nisa.tensor_tensor(dst=x_sbuf, data1=centred, data2=beta_sbuf[0:rows, :], op=nl.add)
        nisa.dma_copy(dst=out[first:last, :], src=x_sbuf)
    return out


def copy_to_rows(vector, rows):
    """Return vector [H] @ HBM in each of `rows` partitions: [rows, H] @ SBUF."""
    copies = nl.ndarray((rows, vector.shape[0]), dtype=vector.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=copies, src=vector.expand_dim(0).broadcast(0, rows))
    return copies
