"""Batched matrix product: each a is transposed once and stays in SBUF, its b streams past it.

Legend: Z = problems, M = rows, K = summed features, N = columns, P = partitions, J = chunks of features.

Each chunk of a^T is `stationary` while up to 2048 columns of b move through TensorE. The sums over K stay in PSUM until
they are complete. Small problems share their DMAs: several a, b and results move at once.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 elements of one PSUM bank, and the widest `moving` of gen2 and gen3
BANKS = 8
FEW_ROWS = 8  # up to here a DMA spreads a over the partitions; beyond, TensorE transposes are faster
RESIDENT_BYTES = 112 * 1024  # of a^T per partition, of 176 KiB on gen2
STREAM_BYTES = 16 * 1024  # of b per partition and DMA
STAGE_BYTES = 8 * 1024  # of a per partition while it is transposed: four PSUM banks of the transposed dtype
GROUP_BYTES = 16 * 1024  # of a or b per DMA: a matrix of that size is one long piece of HBM and goes alone


@nki.jit
def matmul(a, b, wide=False):
    """Multiply each matrix of a with the matrix of b at the same place.

    Args:
        a: [Z, M, K] @ HBM, float32 or bfloat16; or [1, M, K], which multiplies every b. Any M and K.
        b: [Z, K, N] @ HBM, dtype of a; or [1, K, N]. Any N.
        wide: leave the sums in float32, for what follows to round.
    Returns: [Z, M, N] @ HBM, dtype of a; float32 if wide.
    Accuracy: products and sums in float32, rounded once.
    """
    left, rows, features = a.shape
    right, summed, columns = b.shape
    assert summed == features, "matmul: b must be [Z, K, N] for a [Z, M, K]"
    assert b.dtype == a.dtype, "matmul: b must have the dtype of a"
    assert left == right or left == 1 or right == 1, "matmul: a and b must have the same Z, or one of them 1"
    problems = max(left, right)
    out_dtype = nl.float32 if wide else a.dtype
    out = nl.ndarray((problems, rows, columns), dtype=out_dtype, buffer=nl.shared_hbm)
    if left == right and problems > 1 and rows <= P and features <= P and columns <= BANK:
        multiply_small(out, a, b)
        return out
    if right == 1:  # one product with all rows
        problems, rows = 1, left * rows
    all_rows = a.reshape((a.shape[0] * a.shape[1], features))
    all_columns = b.reshape((right * features, columns))
    all_out = out.reshape((problems * rows, columns))
    for problem in range(problems):
        first = problem * rows
        start = problem * features if right > 1 else 0
        multiply(
            all_out[first : first + rows, :],
            all_rows[first : first + rows, :] if left > 1 else all_rows,
            all_columns[start : start + features, :],
        )
    return out


# Problems of one tile each.


def multiply_small(out, a, b):
    """Multiply problems whose matrices fit one tile: a DMA moves as many as make up GROUP_BYTES."""
    problems, rows, features = a.shape
    columns = b.shape[2]
    group = max(1, GROUP_BYTES // (features * max(rows, columns) * element_bytes(a)))
    for first in range(0, problems, group):
        last = min(first + group, problems)
        a_MZK = nl.ndarray((rows, last - first, features), dtype=a.dtype, buffer=nl.sbuf)
        b_KZN = nl.ndarray((features, last - first, columns), dtype=b.dtype, buffer=nl.sbuf)
        out_MZN = nl.ndarray((rows, last - first, columns), dtype=out.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=a_MZK, src=a[first:last, :, :].permute((1, 0, 2)))
        nisa.dma_copy(dst=b_KZN, src=b[first:last, :, :].permute((1, 0, 2)))
        multiply_group(out_MZN, a_MZK, b_KZN)
        nisa.dma_copy(dst=out[first:last, :, :].permute((1, 0, 2)), src=out_MZN)


def multiply_group(out_MZN, a_MZK, b_KZN):
    """Multiply the problems of one DMA; those whose results share a PSUM bank leave it together."""
    rows, problems, features = a_MZK.shape
    columns = b_KZN.shape[2]
    together = min(BANK // columns, BANK // P)  # transposes of bfloat16 would allow more
    for first in range(0, problems, together):
        last = min(first + together, problems)
        a_KZM = nl.ndarray((features, last - first, rows), dtype=a_MZK.dtype, buffer=nl.sbuf)
        flipped = nl.ndarray((features, last - first, rows), dtype=a_MZK.dtype, buffer=nl.psum)
        for problem in range(first, last):
            nisa.nc_transpose(
                dst=flipped[:, problem - first, :], data=a_MZK[:, problem, :], engine=nisa.engine.tensor
            )
        nisa.tensor_copy(dst=a_KZM, src=flipped, engine=nisa.engine.vector)
        sums = nl.ndarray((rows, last - first, columns), dtype=nl.float32, buffer=nl.psum)
        for problem in range(first, last):
            nisa.nc_matmul(
                dst=sums[:, problem - first, :],
                stationary=a_KZM[:, problem - first, :],
                moving=b_KZN[:, problem, :],
                accumulate=False,
            )
        nisa.activation(dst=out_MZN[:, first:last, :], op=nl.copy, data=sums)


# Problems of any size.


def multiply(out, a, b):
    """Write a @ b for one problem."""
    rows, features = a.shape
    partitions = even_partitions(features) if rows <= FEW_ROWS else 0
    block = rows_per_block(features, element_bytes(a))
    for first in range(0, rows, block):
        last = min(first + block, rows)
        if partitions > 0:
            a_PJM = load_interleaved(a, partitions)
        else:
            a_PJM = load_transposed(a[first:last, :])
        project(out[first:last, :], a_PJM, b, partitions)


def element_bytes(tensor):
    """Return the size of an element; kernels take float32 and bfloat16."""
    return 4 if tensor.dtype == nl.float32 else 2


def even_partitions(features):
    """Return on how many partitions the features spread evenly: the most from 96 to P, or 0."""
    for partitions in range(P, 95, -1):
        if features % partitions == 0:
            return partitions
    return 0


def rows_per_block(features, item_bytes):
    """Return how many rows share one pass over b: SBUF bounds a^T, PSUM bounds the sums."""
    chunks = (features + P - 1) // P
    fits = RESIDENT_BYTES // (chunks * item_bytes)
    if fits > P:
        fits = fits - fits % P
    return min(fits, BANKS // least_banks(item_bytes) * P)


def least_banks(item_bytes):
    """Return how many banks of columns keep each row of a DMA of b at 2 KiB or more."""
    return 4 // item_bytes


def load_interleaved(a, partitions):
    """Return a^T for few rows: partition p holds features p * J to p * J + J - 1, neighbours in HBM."""
    rows, features = a.shape
    run = features // partitions
    a_PMJ = nl.ndarray((partitions, rows, run), dtype=a.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=a_PMJ, src=a.reshape((rows, partitions, run)).permute((1, 0, 2)))
    return a_PMJ.permute((0, 2, 1))


def load_transposed(a):
    """Return a^T, transposed by TensorE: feature j * P + p is in chunk j of partition p. Any K."""
    rows, features = a.shape
    a_PJM = nl.ndarray((P, (features + P - 1) // P, rows), dtype=a.dtype, buffer=nl.sbuf)
    stage = STAGE_BYTES // element_bytes(a)
    for first in range(0, rows, P):
        last = min(first + P, rows)
        for start in range(0, features, stage):
            stop = min(start + stage, features)
            rows_sbuf = nl.ndarray((last - first, stop - start), dtype=a.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=rows_sbuf, src=a[first:last, start:stop])
            transpose_chunks(a_PJM[:, start // P : (stop + P - 1) // P, first:last], rows_sbuf)
    return a_PJM


def transpose_chunks(dst_PJM, rows_sbuf):
    """Transpose up to P rows, P columns at a time, and move whole chunks out of PSUM with one instruction."""
    rows, width = rows_sbuf.shape
    chunks = width // P
    if chunks > 0:
        flipped = nl.ndarray((P, chunks, P), dtype=rows_sbuf.dtype, buffer=nl.psum)
        for chunk in range(chunks):
            nisa.nc_transpose(
                dst=flipped[:, chunk, 0:rows],
                data=rows_sbuf[:, chunk * P : (chunk + 1) * P],
                engine=nisa.engine.tensor,
            )
        nisa.tensor_copy(dst=dst_PJM[:, 0:chunks, :], src=flipped[:, :, 0:rows], engine=nisa.engine.vector)
    tail = width % P
    if tail > 0:
        flipped = nl.ndarray((tail, rows), dtype=rows_sbuf.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=flipped, data=rows_sbuf[:, chunks * P : width], engine=nisa.engine.tensor)
        nisa.tensor_copy(dst=dst_PJM[0:tail, chunks, :], src=flipped, engine=nisa.engine.vector)


def pieces_of(b, width, partitions):
    """Cut b [K, N] into what one DMA loads: a list of (first chunk, view [features, chunks, N]).

    The features of a chunk are those of the transposed a: J apart on so many partitions, or P neighbours if
    `partitions` is 0.
    """
    features, columns = b.shape
    chunks = features // P
    if partitions > 0:
        chunks = features // partitions
        b_PJN = b.reshape((partitions, chunks, columns))
    elif chunks > 0:
        b_PJN = b[0 : chunks * P, :].reshape((chunks, P, columns)).permute((1, 0, 2))
    together = max(1, STREAM_BYTES // (width * element_bytes(b)))
    pieces = []
    for first in range(0, chunks, together):
        pieces.append((first, b_PJN[:, first : min(first + together, chunks), :]))
    if partitions == 0 and chunks * P < features:
        pieces.append((chunks, b[chunks * P : features, :].expand_dim(1)))
    return pieces


def project(out, a_PJM, b, partitions):
    """Write a @ b for one block of rows. Each b is loaded once for it."""
    rows, columns = out.shape
    tiles = (rows + P - 1) // P
    row_banks = least_banks(element_bytes(b))
    banks = max(row_banks, BANKS // 2 // tiles)  # half of PSUM fills while half drains
    width = min(banks * BANK, columns)
    pieces = pieces_of(b, width, partitions)
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        sums = []
        for first in range(0, rows, P):
            sums.append(nl.ndarray((min(P, rows - first), width), dtype=nl.float32, buffer=nl.psum))
        for chunk, piece in pieces:
            accumulate(sums, a_PJM, chunk, piece[:, :, start:stop])
        for tile in range(tiles):
            first = tile * P
            last = min(first + P, rows)
            store(out[first:last, start:stop], sums[tile], (start // width + tile) % 2 == 0)


def accumulate(sums, a_PJM, first_chunk, b_hbm):
    """Load b [features, chunks, columns] and add its products with a to the sums of every P rows."""
    features, chunks, columns = b_hbm.shape
    rows = a_PJM.shape[2]
    b_sbuf = nl.ndarray((features, chunks, columns), dtype=b_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=b_sbuf, src=b_hbm)
    for chunk in range(chunks):
        for tile in range(len(sums)):
            a_chunk = a_PJM[0:features, first_chunk + chunk, tile * P : min(tile * P + P, rows)]
            for start in range(0, columns, BANK):
                stop = min(start + BANK, columns)
                nisa.nc_matmul(
                    dst=sums[tile][:, start:stop],
                    stationary=a_chunk,
                    moving=b_sbuf[:, chunk, start:stop],
                    accumulate=first_chunk + chunk > 0,
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
