"""Mixture of experts: each token is projected up, activated and projected down by the experts chosen for it.

Legend: T = tokens, C = choices per token, E = experts, H = hidden, M = columns of the up projection (2 I with a
gate), I = intermediate, N = output features, P = partitions, J = chunks of P features.

Few tokens (decode): a DMA whose address is read at run time loads the chosen experts and no others. Many tokens: every
expert is loaded once for a block of tokens, and a token's share in it is zero where it was not chosen. In both the up
projection comes out transposed, with I on partitions, which is how the down projection wants its input.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 elements of one PSUM bank, and the widest `moving` of gen2 and gen3
HALF_PSUM = 4  # banks: one half fills while the other drains
RESIDENT_BYTES = 120 * 1024  # of a block's activations and sums per partition, of 176 KiB on gen2
STREAM_BYTES = 16 * 1024  # of weights per partition and DMA
MOST_COLUMNS = 2048  # of weights in one row of a DMA: 4 KiB of bfloat16 saturate an engine
STAGE_BYTES = 8 * 1024  # of x per partition while it is transposed: four PSUM banks of the transposed dtype


@nki.jit
def moe_experts(
    x,
    index,
    scores,
    up,
    down,
    up_bias=None,
    down_bias=None,
    activation="silu",
    gating="concatenated",
    alpha=1.0,
    limit=0.0,
    up_offset=0.0,
):
    """Sum over each token's choices c: scores[c] * (expert index[c] applied to the token).

    An expert is hidden @ down + down_bias, where hidden is activation(x @ up + up_bias) without a gate, and with one
    (min(gate, limit) through the activation) * (clip(up, limit) + up_offset).

    Args:
        x: [T, H] @ HBM, float32 or bfloat16. Any T and H.
        index: [T, C] int32 @ HBM, each in 0..E-1, distinct in a row.
        scores: [T, C] @ HBM, float32 or bfloat16.
        up: [E, H, M] @ HBM, dtype of x; columns by `gating`.
        down: [E, I, N] @ HBM, dtype of x.
        up_bias: [E, M] @ HBM, dtype of x, or None.
        down_bias: [E, N] @ HBM, dtype of x, or None.
        activation: "silu", "gelu", "gelu_tanh", "relu" or "relu_squared".
        gating: "none" (M = I), "concatenated" (gates, then ups) or "interleaved" (gate, up, gate, up ...).
        alpha: with "silu", gate * sigmoid(alpha * gate).
        limit: bound of the gate from above and of up on both sides; 0 is none.
        up_offset: added to up before it meets the gate.
    Returns: [T, N] @ HBM, dtype of x.
    Accuracy: sums in float32; the hidden activation and the result are rounded to the dtype of x.
    """
    tokens, hidden = x.shape
    experts, intermediate, columns = down.shape
    factor = 1 if gating == "none" else 2
    assert up.shape == (experts, hidden, factor * intermediate), "moe_experts: up must be [E, H, M]"
    assert index.shape == scores.shape, "moe_experts: index and scores must have one shape"
    rule = (activation, gating, alpha, limit, up_offset)
    out = nl.ndarray((tokens, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    if tokens * index.shape[1] < experts:
        run_chosen(out, x, index, scores, (up, up_bias, down, down_bias), rule)
        return out
    block = tokens_per_block(hidden, intermediate, columns, element_bytes(x))
    for first in range(0, tokens, block):
        last = min(first + block, tokens)
        shares = expert_shares(index[first:last, :], scores[first:last, :], experts)
        run_all(out[first:last, :], x[first:last, :], shares, (up, up_bias, down, down_bias), rule)
    return out


def element_bytes(tensor):
    """Return the size of an element; kernels take float32 and bfloat16."""
    return 4 if tensor.dtype == nl.float32 else 2


def chunk_count(features):
    """Return how many chunks of P hold the features, the last perhaps in part."""
    return (features + P - 1) // P


def tokens_per_block(hidden, intermediate, columns, item_bytes):
    """Return how many tokens share one pass over the experts: what fits SBUF, and the width of `moving`."""
    per_token = (chunk_count(hidden) + chunk_count(intermediate)) * item_bytes + chunk_count(columns) * 4
    fits = max(1, min(RESIDENT_BYTES // per_token, BANK))
    if fits > P:
        fits = fits - fits % P
    elif columns * 4 > RESIDENT_BYTES // 2:
        fits = min(fits, P)
    return fits


# Which experts.


def run_chosen(out, x, index, scores, weights, rule):
    """Write the result for few tokens: each chosen expert is loaded by its number, for one token."""
    tokens, choices = index.shape
    index_sbuf = nl.ndarray((1, tokens * choices), dtype=nl.int32, buffer=nl.sbuf)
    nisa.dma_copy(dst=index_sbuf, src=index.reshape((1, tokens * choices)))
    scores_sbuf = load_float32(scores.reshape((1, tokens * choices)))
    x_PJT = load_transposed(x)
    for token in range(tokens):
        sums = nl.ndarray((1, out.shape[1]), dtype=nl.float32, buffer=nl.sbuf)
        for choice in range(choices):
            pair = token * choices + choice
            expert = index_sbuf[:, pair : pair + 1]
            share = scores_sbuf[:, pair : pair + 1]
            hidden_PJT = activate(x_PJT[:, :, token : token + 1], weights[0], weights[1], expert, rule)
            project([sums], hidden_PJT, weights[2], weights[3], expert, [share], choice == 0)
        store(out[token : token + 1, :], sums)


def run_all(out, x, shares, weights, rule):
    """Write the result for a block of tokens: every expert is loaded once, for all of them."""
    tokens, columns = out.shape
    x_PJT = load_transposed(x)
    sums = []
    for first in range(0, tokens, P):
        sums.append(nl.ndarray((min(P, tokens - first), columns), dtype=nl.float32, buffer=nl.sbuf))
    for expert in range(weights[0].shape[0]):
        hidden_PJT = activate(x_PJT, weights[0], weights[1], expert, rule)
        of_expert = []
        for share in shares:
            of_expert.append(share[:, expert : expert + 1])
        project(sums, hidden_PJT, weights[2], weights[3], expert, of_expert, expert == 0)
    for tile in range(len(sums)):
        store(out[tile * P : min(tile * P + P, tokens), :], sums[tile])


def expert_shares(index, scores, experts):
    """Return for every P tokens how much each expert counts: a list of [tokens, E] float32 @ SBUF."""
    tokens, choices = index.shape
    shares = []
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        numbers = nl.ndarray((last - first, experts), dtype=nl.float32, buffer=nl.sbuf)
        nisa.iota(dst=numbers, pattern=[[1, experts]], offset=0, channel_multiplier=0)
        chosen = load_float32(index[first:last, :])
        weight = load_float32(scores[first:last, :])
        share = nl.ndarray((last - first, experts), dtype=nl.float32, buffer=nl.sbuf)
        for choice in range(choices):
            part = share if choice == 0 else nl.ndarray(share.shape, dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_scalar(
                dst=part,
                data=numbers,
                op0=nl.equal,
                operand0=chosen[:, choice : choice + 1],
                op1=nl.multiply,
                operand1=weight[:, choice : choice + 1],
                engine=nisa.engine.vector,
            )
            if choice > 0:
                nisa.tensor_tensor(dst=share, data1=share, data2=part, op=nl.add)
        shares.append(share)
    return shares


# Loads.


def load(source_hbm):
    """Return a copy in SBUF."""
    loaded = nl.ndarray(source_hbm.shape, dtype=source_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=loaded, src=source_hbm)
    return loaded


def load_float32(source_hbm):
    """Return a copy in SBUF, in float32."""
    loaded = nl.ndarray(source_hbm.shape, dtype=nl.float32, buffer=nl.sbuf)
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
    """Cut columns of one expert's weight [E, K, N] into what one DMA loads: (first chunk, [rows, chunks, columns]).

    `expert` is a number, or a [1, 1] tile that holds it at run time.
    """
    features = weight.shape[1]
    chunks = features // P
    together = max(1, STREAM_BYTES // ((stop - start) * element_bytes(weight)))
    pieces = []
    for first in range(0, chunks, together):
        last = min(first + together, chunks)
        rows = weight[:, first * P : last * P, start:stop].reshape_dim(1, (last - first, P))
        pieces.append((first, rows.permute((0, 2, 1, 3)).select(0, expert)))
    if chunks * P < features:
        rows = weight[:, chunks * P : features, start:stop].expand_dim(2)
        pieces.append((chunks, rows.select(0, expert)))
    return pieces


# Up.


def activate(x_PJT, up, up_bias, expert, rule):
    """Return the hidden activation of one expert, transposed: [P, J, T] @ SBUF in the layout of `load_transposed`."""
    tokens = x_PJT.shape[2]
    intermediate = up.shape[2] if rule[1] == "none" else up.shape[2] // 2
    hidden_PJT = nl.ndarray((P, chunk_count(intermediate), tokens), dtype=up.dtype, buffer=nl.sbuf)
    for first, count, rows in column_runs(intermediate, tokens, rule[1], element_bytes(up)):
        width = (count - 1) * P + rows
        gate_sums = None
        if rule[1] != "none":
            gate_sums = nl.ndarray((rows, count, slot_of(tokens)), dtype=nl.float32, buffer=nl.psum)
        up_sums = nl.ndarray((rows, count, slot_of(tokens)), dtype=nl.float32, buffer=nl.psum)
        start = first * P
        if rule[1] == "interleaved":
            sums = [(gate_sums, 0), (up_sums, 1)]
            accumulate_columns(sums, x_PJT, up, up_bias, expert, 2 * start, 2 * (start + width), 2)
        elif rule[1] == "concatenated":
            accumulate_columns([(gate_sums, 0)], x_PJT, up, up_bias, expert, start, start + width, 1)
            start = start + intermediate
            accumulate_columns([(up_sums, 0)], x_PJT, up, up_bias, expert, start, start + width, 1)
        else:
            accumulate_columns([(up_sums, 0)], x_PJT, up, up_bias, expert, start, start + width, 1)
        dst = hidden_PJT[0:rows, first : first + count, :]
        if rule[1] == "none":
            apply_function(dst, up_sums[:, :, 0:tokens], rule[0], rule[2])
        else:
            apply_gate(dst, gate_sums[:, :, 0:tokens], up_sums[:, :, 0:tokens], rule)
    return hidden_PJT


def slot_of(tokens):
    """Return how many columns of PSUM a chunk takes: a power of two, so that none straddles two banks."""
    slot = 1
    while slot < tokens:
        slot = slot * 2
    return slot


def column_runs(intermediate, tokens, gating, item_bytes):
    """Cut the intermediate features into runs of chunks that share PSUM: a list of (first chunk, chunks, rows)."""
    most = MOST_COLUMNS // P if gating != "interleaved" else MOST_COLUMNS // P // 2
    together = max(1, min(most * 2 // item_bytes, HALF_PSUM // 2 * BANK // slot_of(tokens)))
    runs = []
    full = intermediate // P
    for chunk in range(0, full, together):
        runs.append((chunk, min(together, full - chunk), P))
    if intermediate % P > 0:
        runs.append((full, 1, intermediate % P))
    return runs


def accumulate_columns(sums, x_PJT, weight, bias, expert, start, stop, step):
    """Add (x @ weight[expert][:, start:stop])^T to each (sums [rows, chunks, T] @ PSUM, its first column).

    Args:
        step: columns of the weight from one row of the sums to the next.
    """
    tokens = x_PJT.shape[2]
    for first_chunk, piece in weight_pieces(weight, expert, start, stop):
        weight_sbuf = load(piece)
        for chunk in range(weight_sbuf.shape[1]):
            moving = x_PJT[0 : weight_sbuf.shape[0], first_chunk + chunk, :]
            multiply_columns(sums, weight_sbuf[:, chunk, :], moving, step, first_chunk + chunk > 0)
    if bias != None:  # noqa: E711 (the NKI compiler has no `is`)
        bias_sbuf = load(bias[:, start:stop].expand_dim(1).select(0, expert))
        ones_sbuf = nl.ndarray((1, tokens), dtype=bias.dtype, buffer=nl.sbuf)
        nisa.memset(dst=ones_sbuf, value=1.0)
        multiply_columns(sums, bias_sbuf, ones_sbuf, step, True)


def multiply_columns(sums, weight_sbuf, moving, step, accumulate):
    """Add to each of `sums` its columns of the weights [K, columns], transposed, times `moving` [K, T]."""
    for target, offset in sums:
        rows = target.shape[0]
        for chunk in range(target.shape[1]):
            begin = offset + chunk * P * step
            nisa.nc_matmul(
                dst=target[:, chunk, 0 : moving.shape[1]],
                stationary=weight_sbuf[:, begin : begin + (rows - 1) * step + 1 : step],
                moving=moving,
                accumulate=accumulate,
            )


def apply_function(dst, data, activation, alpha):
    """Write activation(data); "silu" is data * sigmoid(alpha * data)."""
    if activation == "relu_squared":
        relu = nl.ndarray(dst.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=relu, op=nl.relu, data=data)
        nisa.tensor_tensor(dst=dst, data1=relu, data2=relu, op=nl.multiply)
    elif activation == "silu" and alpha != 1.0:
        sigmoid = nl.ndarray(dst.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=sigmoid, op=nl.sigmoid, data=data, scale=alpha)
        nisa.tensor_tensor(dst=dst, data1=data, data2=sigmoid, op=nl.multiply)
    else:
        ops = {"silu": nl.silu, "gelu": nl.gelu, "gelu_tanh": nl.gelu_apprx_tanh, "relu": nl.relu}
        nisa.activation(dst=dst, op=ops[activation], data=data)


def apply_gate(dst, gate, up, rule):
    """Write activation(min(gate, limit)) * (clip(up, limit) + up_offset)."""
    activation, _, alpha, limit, up_offset = rule
    activated = nl.ndarray(dst.shape, dtype=nl.float32, buffer=nl.sbuf)
    if limit > 0.0:
        bounded_gate = nl.ndarray(dst.shape, dtype=nl.float32, buffer=nl.sbuf)
        bounded_up = nl.ndarray(dst.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=bounded_gate, data=gate, op0=nl.minimum, operand0=limit)
        nisa.tensor_scalar(
            dst=bounded_up, data=up, op0=nl.minimum, operand0=limit, op1=nl.maximum, operand1=-limit
        )
        gate = bounded_gate
        up = bounded_up
    apply_function(activated, gate, activation, alpha)
    nisa.scalar_tensor_tensor(
        dst=dst, data=up, op0=nl.add, operand0=up_offset, op1=nl.multiply, operand1=activated
    )


# Down.


def project(totals, hidden_PJT, down, down_bias, expert, shares, is_first):
    """Add share * (hidden @ down + bias) of one expert to the totals [tokens, N] @ SBUF of every P tokens."""
    tokens = hidden_PJT.shape[2]
    columns = down.shape[2]
    width = min(max(1, HALF_PSUM // len(totals)) * BANK, columns)
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        sums = []
        for total in totals:
            sums.append(nl.ndarray((total.shape[0], width), dtype=nl.float32, buffer=nl.psum))
        for first_chunk, piece in weight_pieces(down, expert, start, stop):
            weight_sbuf = load(piece)
            for chunk in range(weight_sbuf.shape[1]):
                stationary = hidden_PJT[0 : weight_sbuf.shape[0], first_chunk + chunk, :]
                multiply_rows(sums, stationary, weight_sbuf[:, chunk, :], first_chunk + chunk > 0)
        if down_bias != None:  # noqa: E711
            bias_sbuf = load(down_bias[:, start:stop].expand_dim(1).select(0, expert))
            ones_sbuf = nl.ndarray((1, tokens), dtype=down_bias.dtype, buffer=nl.sbuf)
            nisa.memset(dst=ones_sbuf, value=1.0)
            multiply_rows(sums, ones_sbuf, bias_sbuf, True)
        for tile in range(len(totals)):
            total = totals[tile][:, start:stop]
            finished = sums[tile][:, 0 : stop - start]
            if is_first:
                nisa.tensor_scalar(dst=total, data=finished, op0=nl.multiply, operand0=shares[tile])
            else:
                nisa.scalar_tensor_tensor(
                    dst=total,
                    data=finished,
                    op0=nl.multiply,
                    operand0=shares[tile],
                    op1=nl.add,
                    operand1=total,
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


def store(out_hbm, rows_sbuf):
    """Round rows to the dtype of the result and store them."""
    out_sbuf = nl.ndarray(out_hbm.shape, dtype=out_hbm.dtype, buffer=nl.sbuf)
    nisa.activation(dst=out_sbuf, op=nl.copy, data=rows_sbuf)
    nisa.dma_copy(dst=out_hbm, src=out_sbuf)
