"""Gated MLP, (activation(x @ gate) * (x @ up)) @ down, without a transpose of the hidden activation.

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
def gated_mlp(
    x, gate, up, down, gate_bias=None, up_bias=None, down_bias=None, activation="silu", halves="apart"
):
    """Project x by gate and up, multiply the activation of the first with the second, project by down.

    Args:
        x: [T, H] @ HBM, float32 or bfloat16. Any T and H.
        gate: [H, I] @ HBM, dtype of x. Any I. Unless `halves` is "apart" a fused weight [H, 2I].
        up: [H, I] @ HBM, dtype of x; or the fused weight again.
        down: [I, N] @ HBM, dtype of x. Any N.
        gate_bias: [I] @ HBM, dtype of x, or None; [2I] where gate is fused.
        up_bias: [I] @ HBM, dtype of x, or None; [2I] where up is fused.
        down_bias: [N] @ HBM, dtype of x, or None.
        activation: "silu", "gelu", "gelu_tanh" or "relu".
        halves: "apart", or which half of a fused weight is which: "gate_up" or "up_gate".
    Returns: [T, N] @ HBM, dtype of x.
    Accuracy: sums in float32; the activation, its product with up and the result are rounded to the dtype of x.
    """
    tokens, hidden = x.shape
    intermediate = down.shape[0]
    stored = intermediate if halves == "apart" else 2 * intermediate
    assert gate.shape[0] == hidden, "gated_mlp: gate must be [H, I] for x [T, H]"
    assert up.shape == gate.shape, "gated_mlp: up must have the shape of gate"
    assert gate.shape[1] == stored, "gated_mlp: down must be [I, N] for gate [H, I], or [H, 2I] if fused"
    out = nl.ndarray((tokens, down.shape[1]), dtype=x.dtype, buffer=nl.shared_hbm)
    gate_half = half_of(gate, gate_bias, intermediate if halves == "up_gate" else 0, intermediate)
    up_half = half_of(up, up_bias, intermediate if halves == "gate_up" else 0, intermediate)
    function = function_of(activation)
    spread = even_partitions(intermediate)
    if tokens <= FEW_TOKENS and spread > 0 and intermediate * element_bytes(x) <= FEW_TOKENS_BYTES:
        rows_sbuf = activate_rows(x, gate_half, up_half, intermediate, function)
        project(out, deal_rows(rows_sbuf, spread), down, down_bias, spread)
        return out
    block = tokens_per_block(hidden, intermediate, element_bytes(x))
    for first in range(0, tokens, block):
        last = min(first + block, tokens)
        x_PJT = load_transposed(x[first:last, :])
        hidden_PJT = activate_columns(x_PJT, gate_half, up_half, intermediate, function)
        project(out[first:last, :], hidden_PJT, down, down_bias, 0)
    return out


def function_of(activation):
    """Return ScalarE's function of that name."""
    if activation == "silu":
        return nl.silu
    if activation == "gelu":
        return nl.gelu
    if activation == "gelu_tanh":
        return nl.gelu_apprx_tanh
    assert activation == "relu", "gated_mlp: activation must be silu, gelu, gelu_tanh or relu"
    return nl.relu


def half_of(weight, bias, start, intermediate):
    """Return a projection as (weight @ HBM, its first column, its bias [I] @ HBM or None)."""
    if bias == None:  # noqa: E711 (the NKI compiler has no `is`)
        return (weight, start, None)
    return (weight, start, bias[start : start + intermediate])


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


def load_columns(vector):
    """Return a bias [I] as [P, J] @ SBUF, float32: element j * P + p is in column j of partition p."""
    size = vector.shape[0]
    columns_PJ = nl.ndarray((P, chunk_count(size)), dtype=nl.float32, buffer=nl.sbuf)
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
    rows_sbuf = load(rows_hbm)
    flipped = nl.ndarray((rows_hbm.shape[1], rows_hbm.shape[0]), dtype=rows_hbm.dtype, buffer=nl.psum)
    nisa.nc_transpose(dst=flipped, data=rows_sbuf, engine=nisa.engine.tensor)
    nisa.tensor_copy(dst=dst_sbuf, src=flipped, engine=nisa.engine.vector)


def activate_rows(x, gate_half, up_half, intermediate, function):
    """Return function(x @ gate) * (x @ up) for few tokens as rows [T, I] @ SBUF."""
    tokens, hidden = x.shape
    spread = even_partitions(hidden)
    x_PJT = load_interleaved(x, spread) if spread > 0 else load_transposed(x)
    width = min(BANKS // 4 * BANK, intermediate)  # two such sums fill while the last two drain
    gate_pieces = weight_pieces(gate_half[0], width, spread)
    up_pieces = weight_pieces(up_half[0], width, spread)
    rows_sbuf = nl.ndarray((tokens, intermediate), dtype=x.dtype, buffer=nl.sbuf)
    for start in range(0, intermediate, width):
        stop = min(start + width, intermediate)
        gate_sums = accumulate_rows(x_PJT, gate_pieces, gate_half, start, stop, width)
        up_sums = accumulate_rows(x_PJT, up_pieces, up_half, start, stop, width)
        active = rows_sbuf[:, start:stop]
        nisa.activation(dst=active, op=function, data=gate_sums[:, 0 : stop - start])
        nisa.tensor_tensor(dst=active, data1=active, data2=up_sums[:, 0 : stop - start], op=nl.multiply)
    return rows_sbuf


def accumulate_rows(x_PJT, pieces, half, start, stop, width):
    """Return columns start to stop of x @ weight plus bias in PSUM: [T, width], of which stop - start are filled."""
    _, first_column, bias = half
    sums = nl.ndarray((x_PJT.shape[2], width), dtype=nl.float32, buffer=nl.psum)
    for chunk, piece in pieces:
        accumulate([sums], x_PJT, chunk, load(piece[:, :, first_column + start : first_column + stop]))
    if bias != None:  # noqa: E711
        accumulate_bias([sums], bias[start:stop])
    return sums


def activate_columns(x_PJT, gate_half, up_half, intermediate, function):
    """Return (function(x @ gate) * (x @ up))^T as [P, J, T] @ SBUF, in the layout of `load_transposed`."""
    tokens = x_PJT.shape[2]
    gate, gate_column, gate_bias = gate_half
    up, up_column, up_bias = up_half
    width = ROW_BYTES // element_bytes(gate)
    hidden_PJT = nl.ndarray((P, chunk_count(intermediate), tokens), dtype=gate.dtype, buffer=nl.sbuf)
    gate_pieces = weight_pieces(gate, width, 0)
    up_pieces = weight_pieces(up, width, 0)
    gate_bias_PJ = load_columns(gate_bias) if gate_bias != None else None  # noqa: E711
    up_bias_PJ = load_columns(up_bias) if up_bias != None else None  # noqa: E711
    for start in range(0, intermediate, width):
        stop = min(start + width, intermediate)
        runs = chunk_runs(stop - start)
        first = start // P
        sums = accumulate_transposed(x_PJT, gate_pieces, gate_column, start, stop)
        for index in range(len(runs)):
            activate(hidden_PJT, first, runs[index], sums[index][:, :, 0:tokens], gate_bias_PJ, function)
        sums = accumulate_transposed(x_PJT, up_pieces, up_column, start, stop)
        for index in range(len(runs)):
            multiply(hidden_PJT, first, runs[index], sums[index][:, :, 0:tokens], up_bias_PJ)
    return hidden_PJT


def activate(hidden_PJT, first_chunk, run, sums, bias_PJ, function):
    """Write function(sums + bias) to the part of the hidden activation that the run fills."""
    active = run_of(hidden_PJT, first_chunk, run)
    if bias_PJ == None:  # noqa: E711
        nisa.activation(dst=active, op=function, data=sums)
        return
    chunk, count, rows = run
    for offset in range(count):
        column = first_chunk + chunk + offset
        bias = bias_PJ[0:rows, column : column + 1]
        nisa.activation(dst=active[:, offset, :], op=function, data=sums[:, offset, :], bias=bias)


def multiply(hidden_PJT, first_chunk, run, sums, bias_PJ):
    """Multiply the part of the hidden activation that the run fills by sums + bias."""
    active = run_of(hidden_PJT, first_chunk, run)
    if bias_PJ == None:  # noqa: E711
        nisa.tensor_tensor(dst=active, data1=active, data2=sums, op=nl.multiply)
        return
    chunk, count, rows = run
    for offset in range(count):
        column = first_chunk + chunk + offset
        nisa.scalar_tensor_tensor(
            dst=active[:, offset, :],
            data=sums[:, offset, :],
            op0=nl.add,
            operand0=bias_PJ[0:rows, column : column + 1],
            op1=nl.multiply,
            operand1=active[:, offset, :],
        )


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


def accumulate_transposed(x_PJT, pieces, first_column, start, stop):
    """Return (x @ weight)^T in PSUM: a tile [rows, chunks, BANK] for each of `chunk_runs`.

    Columns are those from start to stop, counted from first_column.
    """
    tokens = x_PJT.shape[2]
    runs = chunk_runs(stop - start)
    sums = []
    for _, count, rows in runs:
        sums.append(nl.ndarray((rows, count, BANK), dtype=nl.float32, buffer=nl.psum))
    for first_chunk, piece in pieces:
        weight_sbuf = load(piece[:, :, first_column + start : first_column + stop])
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


def project(out, hidden_PJT, weight, bias, partitions):
    """Write hidden @ weight + bias for one block of tokens. Each weight is loaded once."""
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
        if bias != None:  # noqa: E711
            accumulate_bias(sums, bias[start:stop])
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
