"""Matrix product: rows of x are transposed by TensorE, the weights stay in SBUF.

Legend: T = tokens, K = input features, N = output features, P = partitions, J = chunks of K.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 elements of one PSUM bank


@nki.jit
def matmul(x, weight):
    """Multiply x [T, K] by weight [K, N], both @ HBM in one dtype. Returns [T, N]; sums are float32, rounded once."""
    tokens, features = x.shape
    columns = weight.shape[1]
    chunks = (features + P - 1) // P
    out = nl.ndarray((tokens, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    weight_PJN = nl.ndarray((P, chunks, columns), dtype=weight.dtype, buffer=nl.sbuf)
    for chunk in range(chunks):
        start, stop = chunk * P, min((chunk + 1) * P, features)
        nisa.dma_copy(dst=weight_PJN[0 : stop - start, chunk, :], src=weight[start:stop, :])
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        x_PJT = load_transposed(x[first:last, :])
        for begin in range(0, columns, BANK):
            end = min(begin + BANK, columns)
            sums = nl.ndarray((last - first, end - begin), dtype=nl.float32, buffer=nl.psum)
            for chunk in range(chunks):
                depth = min(P, features - chunk * P)
                nisa.nc_matmul(
                    dst=sums,
                    stationary=x_PJT[0:depth, chunk, :],
                    moving=weight_PJN[0:depth, chunk, begin:end],
                    accumulate=chunk > 0,
                )
            out_sbuf = nl.ndarray((last - first, end - begin), dtype=x.dtype, buffer=nl.sbuf)
            nisa.tensor_copy(dst=out_sbuf, src=sums)
            nisa.dma_copy(dst=out[first:last, begin:end], src=out_sbuf)
    return out


def load_transposed(x_hbm):
    """Return up to P rows of x as [P, J, T] @ SBUF: feature j * P + p is in chunk j of partition p."""
    tokens, features = x_hbm.shape
    chunks = (features + P - 1) // P
    x_sbuf = nl.ndarray((tokens, features), dtype=x_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_sbuf, src=x_hbm)
    x_PJT = nl.ndarray((P, chunks, tokens), dtype=x_hbm.dtype, buffer=nl.sbuf)
    for chunk in range(chunks):
        start, stop = chunk * P, min((chunk + 1) * P, features)
        flipped = nl.ndarray((stop - start, tokens), dtype=x_hbm.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=flipped, data=x_sbuf[:, start:stop], engine=nisa.engine.tensor)
        nisa.tensor_copy(dst=x_PJT[0 : stop - start, chunk, :], src=flipped)
    return x_PJT
