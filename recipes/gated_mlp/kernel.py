"""Gated MLP, (silu(x @ gate) * (x @ up)) @ down, without a transpose of the hidden activation.

Legend: T = tokens, H = hidden, I = intermediate, N = output features, P = partitions, J = chunks of features.

Many tokens: weights are `stationary`, so that gate and up come out transposed, with I on partitions, which is
how the down projection wants its input. Few tokens (decode): weights are `moving`, 512 columns a time instead
of 128, and the few rows of the hidden activation are dealt to the partitions by DMAs.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 elements of one PSUM bank, and the widest `moving` of gen2 and gen3
BANKS = 8
FEW_TOKENS = 8
FEW_TOKENS_BYTES = 64 * 1024  # of the hidden activation's rows per partition
RESIDENT_BYTES = 148 * 1024  # of x^T and hidden^T per partition, of 176 KiB on gen2
STREAM_BYTES = 8 * 1024  # of weights per partition and DMA
ROW_BYTES = 2 * 1024  # least length of a row of a weight DMA
STAGE_BYTES = 8 * 1024  # of x per partition while it is transposed: four PSUM banks of the transposed dtype


@nki.jit
def gated_mlp(x, gate, up, down):
    """Project x by gate and up, multiply silu of the first with the second, project by down.

    Args:
        x: [T, H] @ HBM, float32 or bfloat16. Any T and H.
        gate: [H, I] @ HBM, dtype of x. Any I.
        up: [H, I] @ HBM, dtype of x.
        down: [I, N] @ HBM, dtype of x. Any N.
    Returns: [T, N] @ HBM, dtype of x.
    Accuracy: sums in float32; silu(gate), the hidden activation and the result are rounded to the dtype of x.
    """
    tokens, hidden = x.shape
    intermediate = gate.shape[1]
    assert gate.shape[0] == hidden, "gated_mlp: gate must be [H, I] for x [T, H]"
    assert up.shape == gate.shape, "gated_mlp: up must have the shape of gate"
    assert down.shape[0] == intermediate, "gated_mlp: down must be [I, N] for gate [H, I]"
    out = nl.ndarray((tokens, down.shape[1]), dtype=x.dtype, buffer=nl.shared_hbm)
    spread = even_partitions(intermediate)
    if tokens <= FEW_TOKENS and spread > 0 and intermediate * element_bytes(x) <= FEW_TOKENS_BYTES:
        project(out, deal_rows(activate_rows(x, gate, up), spread), down, spread)
        return out
    block = tokens_per_block(hidden, intermediate, element_bytes(x))
    for first in range(0, tokens, block):
        last = min(first + block, tokens)
        hidden_PJT = activate_columns(load_transposed(x[first:last, :]), gate, up)
        project(out[first:last, :], hidden_PJT, down, 0)
    return out


def element_bytes(tensor):
    """Return the size of an element; kernels take float32 and bfloat16."""
    return 4 if tensor.dtype == nl.float32 else 2


def chunk_count(features):
    """Return how many chunks of P hold the features, the last perhaps in part."""
    return (features + P - 1) // P


def even_partitions(features):
    """Return on how many partitions the features spread evenly: the most from 96 to P, or 0."""
    for partitions in range(P, 95, -1):
        if features % partitions == 0:
            return partitions
    return 0


def tokens_per_block(hidden, intermediate, item_bytes):
    """Return how many tokens share one pass over the weights: what fits SBUF, and the width of `moving`."""
    fits = RESIDENT_BYTES // ((chunk_count(hidden) + chunk_count(intermediate)) * item_bytes)
    if fits > P:
        fits = fits - fits % P
    return min(fits, BANK)


# Activations on partitions.


def load_interleaved(x, partitions):
    """Return x^T for few tokens: partition p holds features p * J to p * J + J - 1, neighbours in HBM."""
    tokens, features = x.shape
    run = features // partitions
    x_PTJ = nl.ndarray((partitions, tokens, run), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_PTJ, src=x.reshape((tokens, partitions, run)).permute((1, 0, 2)))
    return x_PTJ.permute((0, 2, 1))


def deal_rows(rows_sbuf, partitions):
    """Return the transpose of rows [T, I] @ SBUF in the layout of `load_interleaved`: one DMA per token."""
    tokens, features = rows_sbuf.shape
    run = features // partitions
    dealt_PTJ = nl.ndarray((partitions, tokens, run), dtype=rows_sbuf.dtype, buffer=nl.sbuf)
    for token in range(tokens):
        nisa.dma_copy(dst=dealt_PTJ[:, token, :], src=rows_sbuf[token : token + 1, :])
    return dealt_PTJ.permute((0, 2, 1))


def load_transposed(x):
    """Return x^T, transposed by TensorE: feature j * P + p is in chunk j of partition p. Any H."""
    tokens, features = x.shape
    x_PJT = nl.ndarray((P, chunk_count(features), tokens), dtype=x.dtype, buffer=nl.sbuf)
    stage = STAGE_BYTES // element_bytes(x)
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        for start in range(0, features, stage):
            stop = min(start + stage, features)
            rows_sbuf = nl.ndarray((last - first, stop - start), dtype=x.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=rows_sbuf, src=x[first:last, start:stop])
            transpose_chunks(x_PJT[:, start // P : chunk_count(stop), first:last], rows_sbuf)
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


# Weights.


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
    stream = (
        STREAM_BYTES if partitions == 0 else 2 * STREAM_BYTES
    )  # few tokens leave more SBUF to the weights
    together = max(1, stream // (width * element_bytes(weight)))
    pieces = []
    for first in range(0, chunks, together):
        pieces.append((first, weight_PJN[:, first : min(first + together, chunks), :]))
    if partitions == 0 and chunks * P < features:
        pieces.append((chunks, weight[chunks * P : features, :].expand_dim(1)))
    return pieces


def load(source_hbm):
    """Return a copy in SBUF."""
    loaded = nl.ndarray(source_hbm.shape, dtype=source_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=loaded, src=source_hbm)
    return loaded


# Gate and up.


def activate_rows(x, gate, up):
    """Return silu(x @ gate) * (x @ up) for few tokens as rows [T, I] @ SBUF."""
    tokens, hidden = x.shape
    intermediate = gate.shape[1]
    spread = even_partitions(hidden)
    x_PJT = load_interleaved(x, spread) if spread > 0 else load_transposed(x)
    width = min(BANKS // 4 * BANK, intermediate)  # two such sums fill while the last two drain
    gate_pieces = weight_pieces(gate, width, spread)
    up_pieces = weight_pieces(up, width, spread)
    rows_sbuf = nl.ndarray((tokens, intermediate), dtype=gate.dtype, buffer=nl.sbuf)
    for start in range(0, intermediate, width):
        stop = min(start + width, intermediate)
        gate_sums = nl.ndarray((tokens, width), dtype=nl.float32, buffer=nl.psum)
        up_sums = nl.ndarray((tokens, width), dtype=nl.float32, buffer=nl.psum)
        for chunk, piece in gate_pieces:
            accumulate([gate_sums], x_PJT, chunk, load(piece[:, :, start:stop]))
        for chunk, piece in up_pieces:
            accumulate([up_sums], x_PJT, chunk, load(piece[:, :, start:stop]))
        silu = rows_sbuf[:, start:stop]
        nisa.activation(dst=silu, op=nl.silu, data=gate_sums[:, 0 : stop - start])
        nisa.tensor_tensor(dst=silu, data1=silu, data2=up_sums[:, 0 : stop - start], op=nl.multiply)
    return rows_sbuf


def activate_columns(x_PJT, gate, up):
    """Return (silu(x @ gate) * (x @ up))^T as [P, J, T] @ SBUF, in the layout of `load_transposed`."""
    tokens = x_PJT.shape[2]
    intermediate = gate.shape[1]
    width = ROW_BYTES // element_bytes(gate)
    hidden_PJT = nl.ndarray((P, chunk_count(intermediate), tokens), dtype=gate.dtype, buffer=nl.sbuf)
    gate_pieces = weight_pieces(gate, width, 0)
    up_pieces = weight_pieces(up, width, 0)
    for start in range(0, intermediate, width):
        stop = min(start + width, intermediate)
        runs = chunk_runs(stop - start)
        first = start // P
        gate_sums = accumulate_transposed(x_PJT, gate_pieces, start, stop)
        for index in range(len(runs)):
            nisa.activation(
                dst=run_of(hidden_PJT, first, runs[index]), op=nl.silu, data=gate_sums[index][:, :, 0:tokens]
            )
        up_sums = accumulate_transposed(x_PJT, up_pieces, start, stop)
        for index in range(len(runs)):
            silu = run_of(hidden_PJT, first, runs[index])
            nisa.tensor_tensor(dst=silu, data1=silu, data2=up_sums[index][:, :, 0:tokens], op=nl.multiply)
    return hidden_PJT


def run_of(hidden_PJT, first_chunk, run):
    """Return the part of the hidden activation that one of `chunk_runs` fills."""
    chunk, count, rows = run
    return hidden_PJT[0:rows, first_chunk + chunk : first_chunk + chunk + count, :]


def chunk_runs(width):
    """Cut columns into pairs of chunks that leave PSUM together: a list of (first chunk, chunks, rows)."""
    runs = []
    full = width // P
    for chunk in range(0, full, 2):
        runs.append((chunk, min(2, full - chunk), P))
    if width % P > 0:
        runs.append((full, 1, width % P))
    return runs


def accumulate_transposed(x_PJT, pieces, start, stop):
    """Return (x @ weight[:, start:stop])^T in PSUM: a tile [rows, chunks, BANK] for each of `chunk_runs`."""
    tokens = x_PJT.shape[2]
    runs = chunk_runs(stop - start)
    sums = []
    for _, count, rows in runs:
        sums.append(nl.ndarray((rows, count, BANK), dtype=nl.float32, buffer=nl.psum))
    for first_chunk, piece in pieces:
        weight_sbuf = load(piece[:, :, start:stop])
        rows, chunks, _ = weight_sbuf.shape
        for chunk in range(chunks):
            x_chunk = x_PJT[0:rows, first_chunk + chunk, :]
            for index in range(len(runs)):
                first, count, width = runs[index]
                for offset in range(count):
                    column = (first + offset) * P
                    nisa.nc_matmul(
                        dst=sums[index][:, offset, 0:tokens],
                        stationary=weight_sbuf[:, chunk, column : column + width],
                        moving=x_chunk,
                        accumulate=first_chunk + chunk > 0,
                    )
    return sums


# Down.


def project(out, hidden_PJT, weight, partitions):
    """Write hidden @ weight for one block of tokens. Each weight is loaded once."""
    tokens, columns = out.shape
    tiles = (tokens + P - 1) // P
    row_banks = ROW_BYTES // element_bytes(weight) // BANK
    banks = max(row_banks, BANKS // 2 // tiles)  # half of PSUM fills while half drains
    width = min(banks * BANK, columns)
    pieces = weight_pieces(weight, width, partitions)
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        sums = []
        for first in range(0, tokens, P):
            sums.append(nl.ndarray((min(P, tokens - first), width), dtype=nl.float32, buffer=nl.psum))
        for chunk, piece in pieces:
            accumulate(sums, hidden_PJT, chunk, load(piece[:, :, start:stop]))
        for tile in range(tiles):
            first = tile * P
            last = min(first + P, tokens)
            store(out[first:last, start:stop], sums[tile], (start // width + tile) % 2 == 0)


def accumulate(sums, x_PJT, first_chunk, weight_sbuf):
    """Add the products of weights [rows, chunks, columns] with x to the sums of every tile of P tokens."""
    rows, chunks, columns = weight_sbuf.shape
    tokens = x_PJT.shape[2]
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


def store(out_hbm, tile_sums, on_scalar_engine):
    """Round sums to the dtype of the result and store them; VectorE and ScalarE take turns."""
    out_sbuf = nl.ndarray(out_hbm.shape, dtype=out_hbm.dtype, buffer=nl.sbuf)
    finished = tile_sums[:, 0 : out_hbm.shape[1]]
    if on_scalar_engine:
        nisa.activation(dst=out_sbuf, op=nl.copy, data=finished)  # gen2 has no tensor_copy on ScalarE
    else:
        nisa.tensor_copy(dst=out_sbuf, src=finished, engine=nisa.engine.vector)
    nisa.dma_copy(dst=out_hbm, src=out_sbuf)
