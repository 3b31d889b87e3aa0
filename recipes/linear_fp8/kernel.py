"""Linear layer with float8 weights: they cross HBM as bytes and enter TensorE as they are, beside bfloat16 rows of x.

Legend: T = tokens, K = input features, N = output features, P = partitions, J = chunks of input features.

TensorE multiplies bfloat16 with float8, so nothing is converted; float32 multiplies only with its own kind, for which
engines convert the weights in turns. The scale of an output feature multiplies the finished sums.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 elements of one PSUM bank, and the widest `moving` of gen2 and gen3
BANKS = 8
LEAST_BANKS = 2  # of columns that a DMA of weights takes: rows of 1 KiB or more
FEW_TOKENS = 8  # up to here a DMA spreads x over the partitions; beyond, TensorE transposes are faster
FEW_TOKENS_COLUMNS = 8192  # whose sums for FEW_TOKENS take one PSUM bank
RESIDENT_BYTES = 96 * 1024  # of x^T per partition, of 176 KiB on gen2
STREAM_BYTES = 8 * 1024  # of float8 weights per partition and DMA
STAGE_BYTES = 8 * 1024  # of x per partition while it is transposed: four PSUM banks of the transposed dtype


@nki.jit
def linear_fp8(x, weight, scale, bias=None, form="e4m3"):
    """Multiply rows of x by float8 weights, scale each output feature and add the bias.

    Args:
        x: [T, K] @ HBM, float32 or bfloat16. Any T and K.
        weight: [K, N] @ HBM, uint8: the bits of float8. Any N.
        scale: [N] @ HBM, float32 or dtype of x.
        bias: [N] @ HBM, dtype of x, or None.
        form: "e4m3" (at most 240, as NeuronCores before v4 have it) or "e5m2".
    Returns: [T, N] @ HBM, dtype of x.
    Accuracy: float8 is exact in either dtype; products, sums, scale and bias in float32, rounded once.
    """
    tokens, features = x.shape
    columns = weight.shape[1]
    assert weight.shape[0] == features, "linear_fp8: weight must be [K, N] for x [T, K]"
    assert weight.dtype == nl.uint8, "linear_fp8: weight must be uint8, the bits of float8"
    assert form == "e4m3" or form == "e5m2", "linear_fp8: form must be e4m3 or e5m2"
    float8 = weight.view(nl.float8_e4m3 if form == "e4m3" else nl.float8_e5m2)
    assert scale.shape[0] == columns, "linear_fp8: scale must be [N] for weight [K, N]"
    out = nl.ndarray((tokens, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    partitions = even_partitions(features) if tokens <= FEW_TOKENS else 0
    if partitions > 0 and columns % P == 0:
        project_few(out, load_interleaved(x, partitions), float8, scale, bias)
        return out
    block = tokens_per_block(features, element_bytes(x))
    for first in range(0, tokens, block):
        last = min(first + block, tokens)
        if partitions > 0:
            x_PJT = load_interleaved(x, partitions)
        else:
            x_PJT = load_transposed(x[first:last, :])
        project(out[first:last, :], x_PJT, float8, scale, bias, partitions)
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
    return min(fits, BANKS // LEAST_BANKS * P)


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


def project_few(out, x_PJT, weight, scale, bias):
    """Write x @ weight * scale + bias for few tokens and columns in whole chunks of P.

    The weights are `stationary`: 128 columns then cost TensorE the shortest instruction, 64 cycles, and not 128. The few
    sums of all columns fit PSUM together, so that a DMA moves whole rows of weights.
    """
    tokens, columns = out.shape
    partitions, chunks, _ = x_PJT.shape
    weight_PJN = weight.reshape((partitions, chunks, columns))
    width = min(FEW_TOKENS_COLUMNS, columns)
    together = max(1, STREAM_BYTES // width)
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        groups = (stop - start) // P
        sums = nl.ndarray((P, groups, tokens), dtype=nl.float32, buffer=nl.psum)
        for first in range(0, chunks, together):
            last = min(first + together, chunks)
            stored_sbuf = nl.ndarray(
                (partitions, last - first, stop - start), dtype=weight.dtype, buffer=nl.sbuf
            )
            nisa.dma_copy(dst=stored_sbuf, src=weight_PJN[:, first:last, start:stop])
            for chunk in range(last - first):
                weight_sbuf = stored_sbuf[:, chunk, :]
                if x_PJT.dtype == nl.float32:
                    weight_sbuf = converted(weight_sbuf, first + chunk)
                for group in range(groups):
                    nisa.nc_matmul(
                        dst=sums[:, group, :],
                        stationary=weight_sbuf[:, group * P : (group + 1) * P],
                        moving=x_PJT[:, first + chunk, :],
                        accumulate=first + chunk > 0,
                    )
        bias_part = bias[start:stop] if bias != None else None  # noqa: E711 (the NKI compiler has no `is`)
        store_few(out[:, start:stop], sums, scale[start:stop], bias_part)


def store_few(out_hbm, sums, scale, bias):
    """Turn sums [P, groups, T] into rows, scale, add the bias and store; a group of P columns is a partition."""
    _, groups, tokens = sums.shape
    sums_sbuf = nl.ndarray((P, tokens, groups), dtype=nl.float32, buffer=nl.sbuf)
    out_sbuf = nl.ndarray((groups, tokens, P), dtype=out_hbm.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=sums_sbuf.permute((0, 2, 1)), src=sums, engine=nisa.engine.vector)
    scale_sbuf = load_groups(scale, groups)
    bias_sbuf = load_groups(bias, groups) if bias != None else None  # noqa: E711
    for token in range(tokens):
        row = nl.ndarray((groups, P), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_transpose(dst=row, data=sums_sbuf[:, token, :], engine=nisa.engine.tensor)
        scale_and_add(out_sbuf[:, token, :], row, scale_sbuf, bias_sbuf)
    nisa.dma_copy(dst=out_hbm.reshape((tokens, groups, P)).permute((1, 0, 2)), src=out_sbuf)


def load_groups(vector, groups):
    """Return a vector as [groups, P] @ SBUF."""
    vector_sbuf = nl.ndarray((groups, P), dtype=vector.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=vector_sbuf, src=vector.reshape((groups, P)))
    return vector_sbuf


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
    together = max(1, STREAM_BYTES // width)
    pieces = []
    for first in range(0, chunks, together):
        pieces.append((first, weight_PJN[:, first : min(first + together, chunks), :]))
    if partitions == 0 and chunks * P < features:
        pieces.append((chunks, weight[chunks * P : features, :].expand_dim(1)))
    return pieces


def project(out, x_PJT, weight, scale, bias, partitions):
    """Write x @ weight * scale + bias for one block of tokens. Each weight is loaded once."""
    tokens, columns = out.shape
    tiles = (tokens + P - 1) // P
    banks = max(LEAST_BANKS, BANKS // 2 // tiles)  # half of PSUM fills while half drains
    width = min(banks * BANK, columns)
    pieces = weight_pieces(weight, width, partitions)
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        sums = []
        for first in range(0, tokens, P):
            sums.append(nl.ndarray((min(P, tokens - first), width), dtype=nl.float32, buffer=nl.psum))
        for chunk, piece in pieces:
            accumulate(sums, x_PJT, chunk, piece[:, :, start:stop])
        scale_sbuf = load_for_rows(scale[start:stop], min(P, tokens))
        bias_sbuf = None
        if bias != None:  # noqa: E711 (the NKI compiler has no `is`)
            bias_sbuf = load_for_rows(bias[start:stop], min(P, tokens))
        for tile in range(tiles):
            first = tile * P
            last = min(first + P, tokens)
            store(out[first:last, start:stop], sums[tile], scale_sbuf, bias_sbuf)


def load_for_rows(vector, rows):
    """Return a vector [N] on each of so many partitions: [rows, N] @ SBUF."""
    vector_sbuf = nl.ndarray((rows, vector.shape[0]), dtype=vector.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=vector_sbuf, src=vector.expand_dim(0).broadcast(0, rows))
    return vector_sbuf


def accumulate(sums, x_PJT, first_chunk, weight_hbm):
    """Load weights [rows, chunks, columns] and add their products with x to the sums of every P tokens."""
    rows, chunks, columns = weight_hbm.shape
    tokens = x_PJT.shape[2]
    stored_sbuf = nl.ndarray((rows, chunks, columns), dtype=weight_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=stored_sbuf, src=weight_hbm)
    for chunk in range(chunks):
        weight_sbuf = stored_sbuf[:, chunk, :]
        if x_PJT.dtype == nl.float32:
            weight_sbuf = converted(weight_sbuf, first_chunk + chunk)
        for tile in range(len(sums)):
            x_chunk = x_PJT[0:rows, first_chunk + chunk, tile * P : min(tile * P + P, tokens)]
            for start in range(0, columns, BANK):
                stop = min(start + BANK, columns)
                nisa.nc_matmul(
                    dst=sums[tile][:, start:stop],
                    stationary=x_chunk,
                    moving=weight_sbuf[:, start:stop],
                    accumulate=first_chunk + chunk > 0,
                )


def converted(stored_sbuf, turn):
    """Return weights [rows, columns] in float32; engines take turns."""
    weight_sbuf = nl.ndarray(stored_sbuf.shape, dtype=nl.float32, buffer=nl.sbuf)
    without_gpsimd = nisa.get_nc_version() == nisa.nc_version.gen2
    engine = turn % 9 % 2 if without_gpsimd else turn % 3  # gen2: ScalarE's clock is 5/4 of VectorE's
    if engine == 0:
        nisa.activation(dst=weight_sbuf, op=nl.copy, data=stored_sbuf)
    elif engine == 1:
        nisa.tensor_copy(dst=weight_sbuf, src=stored_sbuf, engine=nisa.engine.vector)
    else:
        nisa.tensor_copy(dst=weight_sbuf, src=stored_sbuf, engine=nisa.engine.gpsimd)
    return weight_sbuf


def store(out_hbm, tile_sums, scale_sbuf, bias_sbuf):
    """Scale sums, add the bias, round to the dtype of the result and store."""
    rows, columns = out_hbm.shape
    out_sbuf = nl.ndarray((rows, columns), dtype=out_hbm.dtype, buffer=nl.sbuf)
    bias_part = bias_sbuf[0:rows, :] if bias_sbuf != None else None  # noqa: E711
    scale_and_add(out_sbuf, tile_sums[:, 0:columns], scale_sbuf[0:rows, :], bias_part)
    nisa.dma_copy(dst=out_hbm, src=out_sbuf)


def scale_and_add(dst, sums, scale_sbuf, bias_sbuf):
    """Write sums * scale, plus the bias if there is one, in the dtype of dst."""
    if bias_sbuf == None:  # noqa: E711
        nisa.tensor_tensor(dst=dst, data1=sums, data2=scale_sbuf, op=nl.multiply)
        return
    scaled = nl.ndarray(dst.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=scaled, data1=sums, data2=scale_sbuf, op=nl.multiply)
    nisa.tensor_tensor(dst=dst, data1=scaled, data2=bias_sbuf, op=nl.add)
