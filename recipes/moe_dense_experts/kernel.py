"""Experts that each have tokens of their own: a gated MLP for every expert, on its share of the rows.

Legend: T = tokens of each expert, E = experts, H = hidden, I = intermediate, N = output features, P = partitions,
J = chunks of P features.

The up projection comes out transposed, with I on partitions, which is how the down projection wants its input.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 elements of one PSUM bank, and the widest `moving` of gen2 and gen3
HALF_PSUM = 4  # banks: one half fills while the other drains
RESIDENT_BYTES = 120 * 1024  # of a block's activations per partition, of 176 KiB on gen2
STREAM_BYTES = 16 * 1024  # of weights per partition and DMA
MOST_COLUMNS = 2048  # of weights in one row of a DMA: 4 KiB of bfloat16 saturate an engine
STAGE_BYTES = 8 * 1024  # of x per partition while it is transposed: four PSUM banks of the transposed dtype


@nki.jit
def moe_dense_experts(x, up, down, activation="silu"):
    """Apply expert e to rows e * T ... e * T + T - 1 of x: (activation(x @ gate) * (x @ up)) @ down.

    Args:
        x: [E * T, H] @ HBM, float32 or bfloat16. Any T and H.
        up: [E, H, 2 I] @ HBM, dtype of x: the columns of the gate, then those of up.
        down: [E, I, N] @ HBM, dtype of x.
        activation: "silu", "gelu", "gelu_tanh" or "relu".
    Returns: [E * T, N] @ HBM, dtype of x.
    Accuracy: sums in float32; the hidden activation and the result are rounded to the dtype of x.
    """
    rows, hidden = x.shape
    experts, intermediate, columns = down.shape
    assert rows % experts == 0, f"moe_dense_experts: {rows} rows for {experts} experts"
    assert up.shape == (experts, hidden, 2 * intermediate), "moe_dense_experts: up must be [E, H, 2 I]"
    tokens = rows // experts
    out = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    together = rows <= P  # few rows are transposed at once
    all_PJT = load_transposed(x) if together else None
    block = tokens_per_block(hidden, intermediate, element_bytes(x))
    for expert in range(experts):
        for first in range(expert * tokens, (expert + 1) * tokens, block):
            last = min(first + block, (expert + 1) * tokens)
            x_PJT = all_PJT[:, :, first:last] if together else load_transposed(x[first:last, :])
            project(out[first:last, :], activate(x_PJT, up, expert, activation), down, expert)
    return out


def element_bytes(tensor):
    """Return the size of an element; kernels take float32 and bfloat16."""
    return 4 if tensor.dtype == nl.float32 else 2


def chunk_count(features):
    """Return how many chunks of P hold the features, the last perhaps in part."""
    return (features + P - 1) // P


def tokens_per_block(hidden, intermediate, item_bytes):
    """Return how many tokens share one pass over an expert's weights: what fits SBUF, and the width of `moving`."""
    per_token = (chunk_count(hidden) + chunk_count(intermediate)) * item_bytes
    fits = max(1, min(RESIDENT_BYTES // per_token, BANK))
    return fits - fits % P if fits > P else fits


def load(source_hbm):
    """Return a copy in SBUF."""
    loaded = nl.ndarray(source_hbm.shape, dtype=source_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=loaded, src=source_hbm)
    return loaded


def load_transposed(x):
    """Return x^T, transposed by TensorE: feature j * P + p is in chunk j of partition p. Any H."""
    tokens, features = x.shape
    x_PJT = nl.ndarray((P, chunk_count(features), tokens), dtype=x.dtype, buffer=nl.sbuf)
    stage = STAGE_BYTES // element_bytes(x)
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        for start in range(0, features, stage):
            stop = min(start + stage, features)
            rows_sbuf = load(x[first:last, start:stop])
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


def weight_pieces(weight, expert, start, stop):
    """Cut columns of one expert's weight [E, K, N] into what one DMA loads: (first chunk, [rows, chunks, columns])."""
    features = weight.shape[1]
    chunks = features // P
    together = max(1, STREAM_BYTES // ((stop - start) * element_bytes(weight)))
    pieces = []
    for first in range(0, chunks, together):
        last = min(first + together, chunks)
        rows = weight[expert, first * P : last * P, start:stop].reshape_dim(0, (last - first, P))
        pieces.append((first, rows.permute((1, 0, 2))))
    if chunks * P < features:
        pieces.append((chunks, weight[expert, chunks * P : features, start:stop].expand_dim(1)))
    return pieces


def op_of(activation):
    """Return ScalarE's op for an activation."""
    ops = {"silu": nl.silu, "gelu": nl.gelu, "gelu_tanh": nl.gelu_apprx_tanh, "relu": nl.relu}
    return ops[activation]


def activate(x_PJT, up, expert, activation):
    """Return the hidden activation of one expert, transposed: [P, J, T] @ SBUF in the layout of `load_transposed`."""
    tokens = x_PJT.shape[2]
    intermediate = up.shape[2] // 2
    hidden_PJT = nl.ndarray((P, chunk_count(intermediate), tokens), dtype=up.dtype, buffer=nl.sbuf)
    for first, count, rows in column_runs(intermediate, tokens, element_bytes(up)):
        start = first * P
        stop = start + (count - 1) * P + rows
        gate = multiply_columns(x_PJT, up, expert, start, stop)[:, :, 0:tokens]
        other = multiply_columns(x_PJT, up, expert, intermediate + start, intermediate + stop)[:, :, 0:tokens]
        dst = hidden_PJT[0:rows, first : first + count, :]
        activated = nl.ndarray(dst.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=activated, op=op_of(activation), data=gate)
        nisa.tensor_tensor(dst=dst, data1=activated, data2=other, op=nl.multiply)
    return hidden_PJT


def slot_of(tokens):
    """Return how many columns of PSUM a chunk takes: a power of two, so that none straddles two banks."""
    slot = 1
    while slot < tokens:
        slot = slot * 2
    return slot


def column_runs(intermediate, tokens, item_bytes):
    """Cut the intermediate features into runs of chunks that share PSUM: a list of (first chunk, chunks, rows)."""
    most = MOST_COLUMNS // P * 2 // item_bytes
    together = max(1, min(most, HALF_PSUM // 2 * BANK // slot_of(tokens)))
    runs = []
    full = intermediate // P
    for chunk in range(0, full, together):
        runs.append((chunk, min(together, full - chunk), P))
    if intermediate % P > 0:
        runs.append((full, 1, intermediate % P))
    return runs


def multiply_columns(x_PJT, weight, expert, start, stop):
    """Return (x @ weight[expert][:, start:stop])^T: [rows, chunks, slot of T] float32 @ PSUM."""
    tokens = x_PJT.shape[2]
    rows = min(P, stop - start)
    sums = nl.ndarray((rows, (stop - start) // rows, slot_of(tokens)), dtype=nl.float32, buffer=nl.psum)
    for first_chunk, piece in weight_pieces(weight, expert, start, stop):
        weight_sbuf = load(piece)
        for chunk in range(weight_sbuf.shape[1]):
            for run in range(sums.shape[1]):
                nisa.nc_matmul(
                    dst=sums[:, run, 0:tokens],
                    stationary=weight_sbuf[:, chunk, run * rows : (run + 1) * rows],
                    moving=x_PJT[0 : weight_sbuf.shape[0], first_chunk + chunk, :],
                    accumulate=first_chunk + chunk > 0,
                )
    return sums


def project(out, hidden_PJT, down, expert):
    """Write hidden @ down of one expert for a block of its tokens."""
    tokens, columns = out.shape
    tiles = (tokens + P - 1) // P
    width = min(max(1, HALF_PSUM // tiles) * BANK, columns)
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        sums = []
        for first in range(0, tokens, P):
            sums.append(nl.ndarray((min(P, tokens - first), width), dtype=nl.float32, buffer=nl.psum))
        for first_chunk, piece in weight_pieces(down, expert, start, stop):
            weight_sbuf = load(piece)
            for chunk in range(weight_sbuf.shape[1]):
                stationary = hidden_PJT[0 : weight_sbuf.shape[0], first_chunk + chunk, :]
                multiply_rows(sums, stationary, weight_sbuf[:, chunk, :], first_chunk + chunk > 0)
        for tile in range(tiles):
            first = tile * P
            store(
                out[first : min(first + P, tokens), start:stop],
                sums[tile][:, 0 : stop - start],
                tile % 2 == 0,
            )


def multiply_rows(sums, stationary, moving, accumulate):
    """Add stationary^T [T, K] times moving [K, columns] to the sums of every P tokens."""
    columns = moving.shape[1]
    for tile in range(len(sums)):
        first = tile * P
        rows = stationary[:, first : first + sums[tile].shape[0]]
        for start in range(0, columns, BANK):
            stop = min(start + BANK, columns)
            nisa.nc_matmul(
                dst=sums[tile][:, start:stop],
                stationary=rows,
                moving=moving[:, start:stop],
                accumulate=accumulate,
            )


def store(out_hbm, tile_sums, on_scalar_engine):
    """Round sums to the dtype of the result and store them; VectorE and ScalarE take turns."""
    out_sbuf = nl.ndarray(out_hbm.shape, dtype=out_hbm.dtype, buffer=nl.sbuf)
    if on_scalar_engine:
        nisa.activation(dst=out_sbuf, op=nl.copy, data=tile_sums)  # gen2 has no tensor_copy on ScalarE
    else:
        nisa.tensor_copy(dst=out_sbuf, src=tile_sums, engine=nisa.engine.vector)
    nisa.dma_copy(dst=out_hbm, src=out_sbuf)
