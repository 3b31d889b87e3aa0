"""Layer normalisation: features on partitions for a few tokens, else tokens on partitions, several to each.

Legend: T = tokens, H = hidden, P = partitions, R = tokens of one partition, C = H / P (features per partition).
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
FEW_TOKENS = 8  # up to here the features are spread over the partitions
TILE_BYTES = 2 * 1024  # of x per partition and DMA at least: short rows travel together
PSUM_BYTES = 16 * 1024  # per partition: room for gamma and beta, which gen2 reads there at twice the speed


@nki.jit
def layer_norm(x, gamma=None, beta=None, eps=1e-5, offset=0.0):
    """Centre each row, divide it by its standard deviation, scale and shift each feature.

    Args:
        x: [T, H] @ HBM, float32 or bfloat16. Any T; H up to 8192.
        gamma: [H] @ HBM, or None for a gain of one.
        beta: [H] @ HBM, or None for no shift.
        eps: added to the variance; a Python float.
        offset: added to gamma; 1.0 for layers that keep their gain as 1 + w.
    Returns: [T, H] @ HBM, dtype of x.
    Accuracy: float32 throughout; the variance is that of centred values; rounded once.
    """
    tokens, hidden = x.shape
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    eps_sbuf = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=eps_sbuf, value=eps)  # gen2 takes a bias only as a tile
    if tokens <= FEW_TOKENS and hidden % P == 0:
        normalize_spread(out, x, gamma, beta, eps_sbuf, offset)
    else:
        normalize_rows(out, x, gamma, beta, eps_sbuf, offset)
    return out


def element_bytes(tensor):
    """Return the size of an element; kernels take float32 and bfloat16."""
    return 4 if tensor.dtype == nl.float32 else 2


# ---- many tokens ---------------------------------------------------------------------------------------------------


def normalize_rows(out, x, gamma, beta, eps_sbuf, offset):
    """Many tokens: partition p of a tile holds R consecutive tokens, so that short rows travel in long DMAs."""
    tokens, hidden = x.shape
    rows = min(tokens, P)
    most = max(1, TILE_BYTES // (hidden * element_bytes(x)))
    gamma_tile = spread_parameter(gamma, rows, offset)
    beta_tile = spread_parameter(beta, rows, 0.0)
    first = 0
    while first < tokens:
        left = tokens - first
        each = min(most, max(1, left // P))
        parts = min(P, left // each)
        last = first + parts * each
        normalize_tile(
            out[first:last, :].reshape((parts, each, hidden)),
            x[first:last, :].reshape((parts, each, hidden)),
            gamma_tile,
            beta_tile,
            eps_sbuf[0:parts, :],
        )
        first = last


def spread_parameter(parameter, rows, offset):
    """Return gamma or beta on every partition, plus offset: [rows, H] @ PSUM where both fit, else SBUF; or None."""
    if parameter == None:  # noqa: E711 (the NKI compiler has no `is`)
        return None
    hidden = parameter.shape[0]
    tile = nl.ndarray((rows, hidden), dtype=parameter.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=parameter.expand_dim(0).broadcast(0, rows))
    dtype = nl.float32 if offset != 0.0 else parameter.dtype  # 1 + w has more digits than w
    size = 4 if dtype == nl.float32 else 2
    if 2 * hidden * size > PSUM_BYTES and offset == 0.0:
        return tile
    buffer = nl.psum if 2 * hidden * size <= PSUM_BYTES else nl.sbuf
    placed = nl.ndarray((rows, hidden), dtype=dtype, buffer=buffer)
    nisa.tensor_scalar(dst=placed, data=tile, op0=nl.add, operand0=offset, engine=nisa.engine.vector)
    return placed


def normalize_tile(out_hbm, x_hbm, gamma_tile, beta_tile, eps_sbuf):
    """Normalize [parts, R, H], from load to store. ScalarE finds mean and variance, VectorE applies them."""
    parts, each, hidden = x_hbm.shape
    x_sbuf = nl.ndarray(x_hbm.shape, dtype=x_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_sbuf, src=x_hbm)
    scratch = nl.ndarray((parts, hidden), dtype=nl.float32, buffer=nl.sbuf)
    negative_mean = nl.ndarray((parts, each), dtype=nl.float32, buffer=nl.sbuf)
    squares = nl.ndarray((parts, each), dtype=nl.float32, buffer=nl.sbuf)
    scale = nl.ndarray((parts, each), dtype=nl.float32, buffer=nl.sbuf)
    sums = nl.ndarray((parts, each), dtype=nl.float32, buffer=nl.sbuf)
    for row in range(each):
        nisa.activation_reduce(
            dst=scratch,
            op=nl.copy,
            data=x_sbuf[:, row, :],
            reduce_op=nl.add,
            reduce_res=sums[:, row : row + 1],
        )
    nisa.tensor_scalar(dst=negative_mean, data=sums, op0=nl.multiply, operand0=-1.0 / hidden)
    for row in range(each):
        nisa.activation_reduce(
            dst=scratch,
            op=nl.square,
            data=x_sbuf[:, row, :],
            bias=negative_mean[:, row : row + 1],
            reduce_op=nl.add,
            reduce_res=squares[:, row : row + 1],
        )
    nisa.activation(dst=scale, op=nl.rsqrt, data=squares, bias=eps_sbuf, scale=1.0 / hidden)
    for row in range(each):
        apply_row(
            x_sbuf[:, row, :],
            negative_mean[:, row : row + 1],
            scale[:, row : row + 1],
            gamma_tile,
            beta_tile,
        )
    nisa.dma_copy(dst=out_hbm, src=x_sbuf)


def apply_row(x_sbuf, negative_mean, scale, gamma_tile, beta_tile):
    """Turn x [parts, H] into (x - mean) * scale * gamma + beta, in float32, rounded at the last write."""
    parts, hidden = x_sbuf.shape
    has_gamma = gamma_tile != None  # noqa: E711
    has_beta = beta_tile != None  # noqa: E711
    if not has_gamma:
        first_dst = x_sbuf
        if has_beta:
            first_dst = nl.ndarray((parts, hidden), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=first_dst,
            data=x_sbuf,
            op0=nl.add,
            operand0=negative_mean,
            op1=nl.multiply,
            operand1=scale,
            engine=nisa.engine.vector,
        )
        if has_beta:
            nisa.tensor_tensor(dst=x_sbuf, data1=first_dst, data2=beta_tile[0:parts, :], op=nl.add)
        return
    scaled = nl.ndarray((parts, hidden), dtype=nl.float32, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=scaled,
        data=x_sbuf,
        op0=nl.add,
        operand0=negative_mean,
        op1=nl.multiply,
        operand1=gamma_tile[0:parts, :],
    )
    if has_beta:
        nisa.scalar_tensor_tensor(
            dst=x_sbuf,
            data=scaled,
            op0=nl.multiply,
            operand0=scale,
            op1=nl.add,
            operand1=beta_tile[0:parts, :],
        )
    else:
        nisa.tensor_scalar(
            dst=x_sbuf, data=scaled, op0=nl.multiply, operand0=scale, engine=nisa.engine.vector
        )


# ---- few tokens ----------------------------------------------------------------------------------------------------


def normalize_spread(out, x, gamma, beta, eps_sbuf, offset):
    """Few tokens: partition p holds features [p * C, (p + 1) * C) of every token, so all lanes work on each.

    A matmul with a matrix of ones sums over the partitions and hands every partition the total at once.
    """
    tokens, hidden = x.shape
    run = hidden // P
    x_PTC = nl.ndarray((P, tokens, run), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_PTC, src=x.reshape((tokens, P, run)).permute((1, 0, 2)))
    ones_PP = nl.ndarray((P, P), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=ones_PP, value=1.0 / hidden)

    mean_PT = mean_over_partitions(x_PTC, ones_PP)
    centred_PTC = nl.ndarray((P, tokens, run), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=centred_PTC, data1=x_PTC, data2=mean_PT.expand_dim(2).broadcast(2, run), op=nl.subtract
    )
    squares_PTC = nl.ndarray((P, tokens, run), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=squares_PTC, op=nl.square, data=centred_PTC)
    variance_PT = mean_over_partitions(squares_PTC, ones_PP)
    scale_PT = nl.ndarray((P, tokens), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=scale_PT, op=nl.rsqrt, data=variance_PT, bias=eps_sbuf)

    scale_view = scale_PT.expand_dim(2).broadcast(2, run)
    nisa.tensor_tensor(dst=centred_PTC, data1=centred_PTC, data2=scale_view, op=nl.multiply)
    if gamma != None:  # noqa: E711
        gamma_PC = parameter_by_partition(gamma, run, offset)
        gamma_view = gamma_PC.expand_dim(1).broadcast(1, tokens)
        nisa.tensor_tensor(dst=centred_PTC, data1=centred_PTC, data2=gamma_view, op=nl.multiply)
    if beta != None:  # noqa: E711
        beta_view = parameter_by_partition(beta, run, 0.0).expand_dim(1).broadcast(1, tokens)
        nisa.tensor_tensor(dst=x_PTC, data1=centred_PTC, data2=beta_view, op=nl.add)
    else:
        nisa.tensor_copy(dst=x_PTC, src=centred_PTC, engine=nisa.engine.vector)
    nisa.dma_copy(dst=out.reshape((tokens, P, run)).permute((1, 0, 2)), src=x_PTC)


def mean_over_partitions(data_PTC, ones_PP):
    """Return the mean over all features of each token, on every partition: [P, T] @ PSUM, float32."""
    tokens = data_PTC.shape[1]
    partial_PT = nl.ndarray((P, tokens), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=partial_PT, op=nl.add, data=data_PTC, axis=2)
    mean_PT = nl.ndarray((P, tokens), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=mean_PT, stationary=ones_PP, moving=partial_PT, accumulate=False)
    return mean_PT


def parameter_by_partition(parameter, run, offset):
    """Return gamma or beta with features spread over the partitions, plus offset: [P, C] @ SBUF, float32."""
    loaded = nl.ndarray((P, run), dtype=parameter.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=loaded, src=parameter.reshape((P, run)))
    placed = nl.ndarray((P, run), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=placed, data=loaded, op0=nl.add, operand0=offset, engine=nisa.engine.vector)
    return placed
