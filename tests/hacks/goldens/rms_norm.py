"""Root mean square normalisation, a token in each partition. T = tokens, H = hidden."""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128


@nki.jit
def rms_norm(x, gamma, eps):
    """Return x / sqrt(mean(x^2) + eps) * gamma for x [T, H], gamma [H]: [T, H] @ HBM, dtype of x."""
    tokens, hidden = x.shape
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    eps_sbuf = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=eps_sbuf, value=eps)
    gamma_sbuf = nl.ndarray((min(tokens, P), hidden), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=gamma_sbuf, src=gamma.expand_dim(0).broadcast(0, min(tokens, P)))
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        x_sbuf = nl.ndarray((last - first, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :])
        squares = nl.ndarray((last - first, hidden), dtype=nl.float32, buffer=nl.sbuf)
        total = nl.ndarray((last - first, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(dst=squares, op=nl.square, data=x_sbuf, reduce_op=nl.add, reduce_res=total)
        scale = nl.ndarray((last - first, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(
            dst=scale, op=nl.rsqrt, data=total, bias=eps_sbuf[0 : last - first, :], scale=1.0 / hidden
        )
        nisa.scalar_tensor_tensor(
            dst=x_sbuf,
            data=x_sbuf,
            op0=nl.multiply,
            operand0=scale,
            op1=nl.multiply,
            operand1=gamma_sbuf[0 : last - first, :],
        )
        nisa.dma_copy(dst=out[first:last, :], src=x_sbuf)
    return out
