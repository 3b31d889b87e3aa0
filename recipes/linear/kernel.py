"""Linear layer: x is transposed once and stays in SBUF, the weights stream past it once per block of tokens.

Legend: T = tokens, K = input features, N = output features, P = partitions, J = chunks of input features.

Each chunk of x^T is `stationary` while up to 2048 columns of the weights move through TensorE. The sums over
K stay in PSUM until they are complete.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 elements of one PSUM bank, and the widest `moving` of gen2 and gen3
BANKS = 8
FEW_TOKENS = 8  # up to here a DMA spreads x over the partitions; beyond, TensorE transposes are faster
RESIDENT_BYTES = 112 * 1024  # of x^T per partition, of 176 KiB on gen2
STREAM_BYTES = 16 * 1024  # of weights per partition and DMA
STAGE_BYTES = 8 * 1024  # of x per partition while it is transposed: four PSUM banks of the transposed dtype


@nki.jit
def linear(x, weight, bias=None):
    """Multiply rows of x by the weights and add the bias.

    Args:
        x: [T, K] @ HBM, float32 or bfloat16. Any T and K.
        weight: [K, N] @ HBM, dtype of x. Any N.
        bias: [N] @ HBM, dtype of x, or None.
    Returns: [T, N] @ HBM, dtype of x.
    Accuracy: products and sums in float32, rounded once.
    """
    tokens, features = x.shape
    assert weight.shape[0] == features, "linear: weight must be [K, N] for x [T, K]"
    assert weight.dtype == x.dtype, "linear: weight must have the dtype of x"
    out = nl.ndarray((tokens, weight.shape[1]), dtype=x.dtype, buffer=nl.shared_hbm)
    partitions = even_partitions(features) if tokens <= FEW_TOKENS else 0
    block = tokens_per_block(features, element_bytes(x))
    for first in range(0, tokens, block):
        last = min(first + block, tokens)
        if partitions > 0:
            x_PJT = load_interleaved(x, partitions)
        else:
            x_PJT = load_transposed(x[first:last, :])
        project(out[first:last, :], x_PJT, weight, bias, partitions)
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


def load_interleaved(x, partitions):
    """Return x^T for few tokens: partition p holds features p * J to p * J + J - 1, neighbours in HBM."""
    tokens, features = x.shape
    run = features // partitions
    x_PTJ = nl.ndarray((partitions, tokens, run), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_PTJ, src=x.reshape((tokens, partitions, run)).permute((1, 0, 2)))
    return x_PTJ.permute((0, 2, 1))


def load_transposed(x):
    """Return x^T, transposed by TensorE: feature j * P + p is in chunk j of partition p. Any K."""
    tokens, features = x.shape
    x_PJT = nl.ndarray((P, (features + P - 1) // P, tokens), dtype=x.dtype, buffer=nl.sbuf)
    stage = STAGE_BYTES // element_bytes(x)
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        for start in range(0, features, stage):
            stop = min(start + stage, features)
            rows_sbuf = nl.ndarray((last - first, stop - start), dtype=x.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=rows_sbuf, src=x[first:last, start:stop])
            transpose_chunks(x_PJT[:, start // P : (stop + P - 1) // P, first:last], rows_sbuf)
    return x_PJT


def transpose_chunks(dst_PJT, rows_sbuf):
    """Transpose up to P rows, P columns at a time, and move whole chunks out of PSUM with one instruction."""
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
        nisa.tensor_copy(dst=dst_PJT[:, 0:chunks, :], src=flipped[:, :, 0:tokens], engine=nisa.engine.vector)
    tail = width % P
    if tail > 0:
        flipped = nl.ndarray((tail, tokens), dtype=rows_sbuf.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=flipped, data=rows_sbuf[:, chunks * P : width], engine=nisa.engine.tensor)
        nisa.tensor_copy(dst=dst_PJT[0:tail, chunks, :], src=flipped, engine=nisa.engine.vector)


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


def project(out, x_PJT, weight, bias, partitions):
    """Write x @ weight + bias for one block of tokens. Each weight is loaded once."""
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
        if bias != None:  # noqa: E711 (the NKI compiler has no `is`)
            accumulate_bias(sums, bias[start:stop])
        for tile in range(tiles):
            first = tile * P
            last = min(first + P, tokens)
            store(out[first:last, start:stop], sums[tile], (start // width + tile) % 2 == 0)


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


def accumulate_bias(sums, bias_hbm):
    """Add the bias to every row as one more product, with ones: no copy of it for each partition."""
    columns = bias_hbm.shape[0]
    bias_sbuf = nl.ndarray((1, columns), dtype=bias_hbm.dtype, buffer=nl.sbuf)
    ones_sbuf = nl.ndarray((1, P), dtype=bias_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=bias_sbuf, src=bias_hbm.expand_dim(0))
    nisa.memset(dst=ones_sbuf, value=1.0)
    for tile_sums in sums:
        for start in range(0, columns, BANK):
            stop = min(start + BANK, columns)
            nisa.nc_matmul(
                dst=tile_sums[:, start:stop],
                stationary=ones_sbuf[:, 0 : tile_sums.shape[0]],
                moving=bias_sbuf[:, start:stop],
                accumulate=True,
            )


def store(out_hbm, tile_sums, on_scalar_engine):
    """Round sums to the dtype of the result and store them; VectorE and ScalarE take turns."""
    out_sbuf = nl.ndarray(out_hbm.shape, dtype=out_hbm.dtype, buffer=nl.sbuf)
    finished = tile_sums[:, 0 : out_hbm.shape[1]]
    if on_scalar_engine:
        nisa.activation(dst=out_sbuf, op=nl.copy, data=finished)  # gen2 has no tensor_copy on ScalarE
    else:
        nisa.tensor_copy(dst=out_sbuf, src=finished, engine=nisa.engine.vector)
    nisa.dma_copy(dst=out_hbm, src=out_sbuf)
