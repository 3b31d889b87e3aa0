"""RMS norm and projection in one pass: x is read once, and its normalised form never leaves the core.

Legend: T = tokens, K = features, N = output features, P = partitions, J = chunks of features.

gamma multiplies the chunks of x^T as they leave PSUM. What divides a row, its root mean square, commutes with the
product: it multiplies the finished sums, where the row is a partition again.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 elements of one PSUM bank, and the widest `moving` of gen2 and gen3
BANKS = 8
FEW_TOKENS = 8  # up to here a DMA spreads x over the partitions; beyond, TensorE transposes are faster
RESIDENT_BYTES = 96 * 1024  # of x^T per partition, of 176 KiB on gen2
STREAM_BYTES = 16 * 1024  # of weights per partition and DMA
STAGE_BYTES = 8 * 1024  # of x per partition while it is transposed: four PSUM banks of the transposed dtype


@nki.jit
def norm_linear(x, gamma, weight, bias=None, eps=1e-6):
    """Divide each row of x by its root mean square, scale each feature by gamma, project and add the bias.

    Args:
        x: [T, K] @ HBM, float32 or bfloat16. Any T and K.
        gamma: [K] @ HBM, dtype of x.
        weight: [K, N] @ HBM, dtype of x. Any N.
        bias: [N] @ HBM, dtype of x, or None.
        eps: added to the mean square; a Python float.
    Returns: [T, N] @ HBM, dtype of x.
    Accuracy: x * gamma is rounded to the dtype of x, the result once more; the rest is float32.
    """
    tokens, features = x.shape
    assert gamma.shape[0] == features, "norm_linear: gamma must be [K] for x [T, K]"
    assert weight.shape[0] == features, "norm_linear: weight must be [K, N] for x [T, K]"
    assert weight.dtype == x.dtype, "norm_linear: weight must have the dtype of x"
    out = nl.ndarray((tokens, weight.shape[1]), dtype=x.dtype, buffer=nl.shared_hbm)
    eps_sbuf = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=eps_sbuf, value=eps)  # gen2 takes a bias only as a tile
    partitions = even_partitions(features) if tokens <= FEW_TOKENS else 0
    if partitions > 0:
        x_PJT, means = load_interleaved(x, gamma, partitions)
        project(out, x_PJT, inverse_roots(means, eps_sbuf), weight, bias, partitions)
        return out
    gamma_PJ = load_columns(gamma)
    block = tokens_per_block(features, element_bytes(x))
    for first in range(0, tokens, block):
        last = min(first + block, tokens)
        x_PJT, means = load_transposed(x[first:last, :], gamma_PJ)
        project(out[first:last, :], x_PJT, inverse_roots(means, eps_sbuf), weight, bias, 0)
    return out


def element_bytes(tensor):
    """Return the size of an element; kernels take float32 and bfloat16."""
    return 4 if tensor.dtype == nl.float32 else 2


def even_partitions(features):
    """Return on how many partitions the features spread evenly: the most from 96 to P, or 0."""
    for partitions in range(P, 95, -1):
        if features % partitions == 0:
            return partitions
    return 0


def tokens_per_block(features, item_bytes):
    """Return how many tokens share one pass over the weights: SBUF bounds x^T, PSUM bounds the sums."""
    chunks = (features + P - 1) // P
    fits = RESIDENT_BYTES // (chunks * item_bytes)
    if fits > P:
        fits = fits - fits % P
    return min(fits, BANKS // least_banks(item_bytes) * P)


def least_banks(item_bytes):
    """Return how many banks of columns keep each row of a weight DMA at 2 KiB or more."""
    return 4 // item_bytes


def load_columns(vector):
    """Return a vector [K] as [P, J] @ SBUF, float32: element j * P + p is in column j of partition p."""
    size = vector.shape[0]
    columns_PJ = nl.ndarray((P, (size + P - 1) // P), dtype=nl.float32, buffer=nl.sbuf)
    full = size // P
    for first in range(0, full, P):
        last = min(first + P, full)
        flip_rows(columns_PJ[:, first:last], vector[first * P : last * P].reshape((last - first, P)))
    tail = size % P
    if tail > 0:
        flip_rows(columns_PJ[0:tail, full : full + 1], vector[full * P : size].expand_dim(0))
    return columns_PJ


def flip_rows(dst_sbuf, rows_hbm):
    """Load up to P rows of up to P elements and write their transpose: a DMA of single elements would crawl."""
    rows_sbuf = nl.ndarray(rows_hbm.shape, dtype=rows_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=rows_sbuf, src=rows_hbm)
    flipped = nl.ndarray((rows_hbm.shape[1], rows_hbm.shape[0]), dtype=rows_hbm.dtype, buffer=nl.psum)
    nisa.nc_transpose(dst=flipped, data=rows_sbuf, engine=nisa.engine.tensor)
    nisa.tensor_copy(dst=dst_sbuf, src=flipped, engine=nisa.engine.vector)


def load_interleaved(x, gamma, partitions):
    """Return (x * gamma)^T and the mean squares of x for few tokens.

    Partition p holds features p * J to p * J + J - 1, neighbours in HBM. A product with ones sums over partitions and
    leaves each token on a partition.
    """
    tokens, features = x.shape
    run = features // partitions
    x_PTJ = nl.ndarray((partitions, tokens, run), dtype=x.dtype, buffer=nl.sbuf)
    gamma_PJ = nl.ndarray((partitions, run), dtype=gamma.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_PTJ, src=x.reshape((tokens, partitions, run)).permute((1, 0, 2)))
    nisa.dma_copy(dst=gamma_PJ, src=gamma.reshape((partitions, run)))
    squares_PTJ = nl.ndarray((partitions, tokens, run), dtype=nl.float32, buffer=nl.sbuf)
    partial_PT = nl.ndarray((partitions, tokens), dtype=nl.float32, buffer=nl.sbuf)
    mean_P1 = nl.ndarray((partitions, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=squares_PTJ, op=nl.square, data=x_PTJ)
    nisa.tensor_reduce(dst=partial_PT, op=nl.add, data=squares_PTJ, axis=2)
    nisa.memset(dst=mean_P1, value=1.0 / features)
    means = nl.ndarray((tokens, 1), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=means, stationary=partial_PT, moving=mean_P1, accumulate=False)
    nisa.tensor_tensor(
        dst=x_PTJ, data1=x_PTJ, data2=gamma_PJ.expand_dim(1).broadcast(1, tokens), op=nl.multiply
    )
    return x_PTJ.permute((0, 2, 1)), [means]


def load_transposed(x, gamma_PJ):
    """Return (x * gamma)^T, transposed by TensorE, and the mean squares of every P rows of x: a list of [rows, 1].

    Feature j * P + p is in chunk j of partition p. Any K.
    """
    tokens, features = x.shape
    x_PJT = nl.ndarray((P, (features + P - 1) // P, tokens), dtype=x.dtype, buffer=nl.sbuf)
    stage = STAGE_BYTES // element_bytes(x)
    means = []
    for first in range(0, tokens, P):
        rows = min(P, tokens - first)
        parts = nl.ndarray((rows, (features + stage - 1) // stage), dtype=nl.float32, buffer=nl.sbuf)
        for start in range(0, features, stage):
            stop = min(start + stage, features)
            rows_sbuf = nl.ndarray((rows, stop - start), dtype=x.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=rows_sbuf, src=x[first : first + rows, start:stop])
            part = start // stage
            sum_mean_squares(parts[:, part : part + 1], rows_sbuf, features)
            chunks = (stop + P - 1) // P
            transpose_chunks(
                x_PJT[:, start // P : chunks, first : first + rows],
                rows_sbuf,
                gamma_PJ[:, start // P : chunks],
            )
        mean = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=mean, op=nl.add, data=parts, axis=1)
        means.append(mean)
    return x_PJT, means


def sum_mean_squares(dst, rows_sbuf, features):
    """Write the sum of the squares of each row, divided by all features: ScalarE sums as it squares."""
    squares = nl.ndarray(rows_sbuf.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation_reduce(
        dst=squares,
        op=nl.square,
        data=rows_sbuf,
        scale=features**-0.5,
        reduce_op=nl.add,
        reduce_res=dst,
    )


def transpose_chunks(dst_PJT, rows_sbuf, gamma_PJ):
    """Transpose up to P rows, P columns at a time; gamma multiplies whole chunks as they leave PSUM."""
    tokens, width = rows_sbuf.shape
    chunks = width // P
    if chunks > 0:
        flipped = nl.ndarray((P, chunks, P), dtype=rows_sbuf.dtype, buffer=nl.psum)
        for chunk in range(chunks):
            nisa.nc_transpose(
                dst=flipped[:, chunk, 0:tokens],
                data=rows_sbuf[:, chunk * P : (chunk + 1) * P],
                engine=nisa.engine.tensor,
            )
        nisa.tensor_tensor(
            dst=dst_PJT[:, 0:chunks, :],
            data1=flipped[:, :, 0:tokens],
            data2=gamma_PJ[:, 0:chunks].expand_dim(2).broadcast(2, tokens),
            op=nl.multiply,
        )
    tail = width % P
    if tail > 0:
        flipped = nl.ndarray((tail, tokens), dtype=rows_sbuf.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=flipped, data=rows_sbuf[:, chunks * P : width], engine=nisa.engine.tensor)
        nisa.tensor_scalar(
            dst=dst_PJT[0:tail, chunks, :],
            data=flipped,
            op0=nl.multiply,
            operand0=gamma_PJ[0:tail, chunks : chunks + 1],
            engine=nisa.engine.vector,
        )


def inverse_roots(means, eps_sbuf):
    """Return 1 / sqrt(mean + eps) of each list entry [rows, 1] @ SBUF, float32."""
    roots = []
    for mean in means:
        rows = mean.shape[0]
        root = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=root, op=nl.rsqrt, data=mean, bias=eps_sbuf[0:rows, :])
        roots.append(root)
    return roots


def weight_pieces(weight, width, partitions):
    """Cut the rows of weight [K, N] into what one DMA loads: a list of (first chunk, view [rows, chunks, N]).

    The rows of a chunk are those of the transposed activation: rows J apart on so many partitions, or P
    neighbours if `partitions` is 0.
    """
    features, columns = weight.shape
    chunks = features // P
    if partitions > 0:
        chunks = features // partitions
        weight_PJN = weight.reshape((partitions, chunks, columns))
    elif chunks > 0:
        weight_PJN = weight[0 : chunks * P, :].reshape((chunks, P, columns)).permute((1, 0, 2))
    together = max(1, STREAM_BYTES // (width * element_bytes(weight)))
    pieces = []
    for first in range(0, chunks, together):
        pieces.append((first, weight_PJN[:, first : min(first + together, chunks), :]))
    if partitions == 0 and chunks * P < features:
        pieces.append((chunks, weight[chunks * P : features, :].expand_dim(1)))
    return pieces


def project(out, x_PJT, roots, weight, bias, partitions):
    """Write x @ weight * root + bias for one block of tokens. Each weight is loaded once."""
    tokens, columns = out.shape
    tiles = (tokens + P - 1) // P
    row_banks = least_banks(element_bytes(weight))
    banks = max(row_banks, BANKS // 2 // tiles)  # half of PSUM fills while half drains
    width = min(banks * BANK, columns)
    pieces = weight_pieces(weight, width, partitions)
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        sums = []
        for first in range(0, tokens, P):
            sums.append(nl.ndarray((min(P, tokens - first), width), dtype=nl.float32, buffer=nl.psum))
        for chunk, piece in pieces:
            accumulate(sums, x_PJT, chunk, piece[:, :, start:stop])
        bias_sbuf = None
        if bias != None:  # noqa: E711 (the NKI compiler has no `is`)
            bias_sbuf = nl.ndarray((min(P, tokens), stop - start), dtype=bias.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=bias_sbuf, src=bias[start:stop].expand_dim(0).broadcast(0, min(P, tokens)))
        for tile in range(tiles):
            first = tile * P
            last = min(first + P, tokens)
            on_scalar_engine = (start // width + tile) % 2 == 0
            store(out[first:last, start:stop], sums[tile], roots[tile], bias_sbuf, on_scalar_engine)


def accumulate(sums, x_PJT, first_chunk, weight_hbm):
    """Load weights [rows, chunks, columns] and add their products with x to the sums of every P tokens."""
    rows, chunks, columns = weight_hbm.shape
    tokens = x_PJT.shape[2]
    weight_sbuf = nl.ndarray((rows, chunks, columns), dtype=weight_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=weight_sbuf, src=weight_hbm)
    for chunk in range(chunks):
        for tile in range(len(sums)):
            x_chunk = x_PJT[0:rows, first_chunk + chunk, tile * P : min(tile * P + P, tokens)]
            for start in range(0, columns, BANK):
                stop = min(start + BANK, columns)
                nisa.nc_matmul(
                    dst=sums[tile][:, start:stop],
                    stationary=x_chunk,
                    moving=weight_sbuf[:, chunk, start:stop],
                    accumulate=first_chunk + chunk > 0,
                )


def store(out_hbm, tile_sums, root, bias_sbuf, on_scalar_engine):
    """Scale the rows of sums, add the bias, round and store; without bias VectorE and ScalarE take turns."""
    rows, columns = out_hbm.shape
    out_sbuf = nl.ndarray((rows, columns), dtype=out_hbm.dtype, buffer=nl.sbuf)
    finished = tile_sums[:, 0:columns]
    if bias_sbuf != None:  # noqa: E711
        nisa.scalar_tensor_tensor(
            dst=out_sbuf,
            data=finished,
            op0=nl.multiply,
            operand0=root,
            op1=nl.add,
            operand1=bias_sbuf[0:rows, :],
        )
    elif on_scalar_engine:
        nisa.activation(dst=out_sbuf, op=nl.copy, data=finished, scale=root)
    else:
        nisa.tensor_scalar(
            dst=out_sbuf, data=finished, op0=nl.multiply, operand0=root, engine=nisa.engine.vector
        )
    nisa.dma_copy(dst=out_hbm, src=out_sbuf)
