"""Matrix product: 128 x 128 blocks of x^T stationary, rows of y moving, sums over K in PSUM. M, K, N = sizes."""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
WIDTH = 512


@nki.jit
def matmul(x, y):
    """Return x @ y for x [M, K], y [K, N]: [M, N] @ HBM, dtype of x. Summed in float32, rounded once."""
    rows, depth = x.shape
    columns = y.shape[1]
    out = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    for top in range(0, rows, P):
        bottom = min(top + P, rows)
        for left in range(0, columns, WIDTH):
            right = min(left + WIDTH, columns)
            total = nl.ndarray((bottom - top, right - left), dtype=nl.float32, buffer=nl.psum)
            for start in range(0, depth, P):
                stop = min(start + P, depth)
                x_KM = nl.ndarray((stop - start, bottom - top), dtype=x.dtype, buffer=nl.sbuf)
                nisa.dma_copy(dst=x_KM, src=x[top:bottom, start:stop].permute((1, 0)))
                y_KN = nl.ndarray((stop - start, right - left), dtype=y.dtype, buffer=nl.sbuf)
                nisa.dma_copy(dst=y_KN, src=y[start:stop, left:right])
                nisa.nc_matmul(dst=total, stationary=x_KM, moving=y_KN)
            result = nl.ndarray((bottom - top, right - left), dtype=x.dtype, buffer=nl.sbuf)
            nisa.tensor_copy(dst=result, src=total)
            nisa.dma_copy(dst=out[top:bottom, left:right], src=result)
    return out
