"""Router of a mixture of experts: logits, the experts of each token, and how much each of them counts.

Legend: T = tokens, H = hidden, E = experts, C = choices per token, G = groups of experts, P = partitions, J = chunks
of P features.

Tokens stand on partitions and their logits never leave the chip before the choice is made. VectorE finds eight maxima
at a time; softmax and sigmoid do not change an order, so logits are searched unless a correction does.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 elements of one PSUM bank, and the widest `moving` of gen2 and gen3
EIGHT = 8  # what `max8` finds at a time, and the least that it can search
RESIDENT_BYTES = 96 * 1024  # of weights per partition, of 176 KiB on gen2
STREAM_BYTES = 16 * 1024  # of weights per partition and DMA
STAGE_BYTES = 4 * 1024  # of x per partition while it is transposed: two PSUM banks of the transposed dtype
FEW_TOKENS = 8  # up to here a DMA spreads x over the partitions; beyond, TensorE transposes are faster
LOWEST = -3.0e38  # below every score, and still finite
FAR_BELOW = 1.0e30  # taken from the scores of groups that are out
ABSENT = 3.0e38  # equal to no score
LEAST_SUM = 1.0e-20  # DeepSeek-V3's: keeps scores that are all zero from becoming 0 / 0


@nki.jit
def moe_router(
    x,
    weight,
    bias=None,
    correction=None,
    function="softmax",
    choices=1,
    groups=1,
    groups_kept=1,
    group_rule="max",
    normalize=True,
    scale=1.0,
    dense=False,
    float32_logits=False,
    float32_scores=False,
):
    """Choose experts by the largest function(x @ weight + bias) + correction, best first.

    Args:
        x: [T, H] @ HBM, float32 or bfloat16. Any T and H.
        weight: [H, E] @ HBM, dtype of x. E at most 512.
        bias: [E] @ HBM, dtype of x, or None.
        correction: [E] @ HBM, float32 or bfloat16, or None: counts for the choice, not for the scores.
        function: "softmax" (over all experts) or "sigmoid".
        choices: C, at most E.
        groups: G, a divisor of E; only experts of the best `groups_kept` (at most 8) groups are chosen.
        group_rule: a group counts by its best expert ("max") or by the sum of its best two ("two").
        normalize: scores of the chosen experts are divided by their sum.
        scale: multiplies the scores.
        dense: scores are [T, E], zero where an expert is not chosen.
        float32_logits, float32_scores: whether these are float32, or in the dtype of x.
    Returns: logits [T, E], scores [T, C] or [T, E], indices [T, C] int32, all @ HBM.
    Accuracy: float32 throughout, rounded once.
    """
    tokens, features = x.shape
    experts = weight.shape[1]
    assert weight.shape[0] == features, "moe_router: weight must be [H, E] for x [T, H]"
    assert experts <= BANK, f"moe_router: {experts} experts, at most {BANK}"
    assert choices <= experts, f"moe_router: {choices} choices of {experts} experts"
    assert experts % groups == 0, f"moe_router: {experts} experts in {groups} groups"
    assert groups_kept <= EIGHT, f"moe_router: {groups_kept} groups kept, at most {EIGHT}"
    logits_dtype = nl.float32 if float32_logits else x.dtype
    scores_dtype = nl.float32 if float32_scores else x.dtype
    width = experts if dense else choices
    out_logits = nl.ndarray((tokens, experts), dtype=logits_dtype, buffer=nl.shared_hbm)
    out_scores = nl.ndarray((tokens, width), dtype=scores_dtype, buffer=nl.shared_hbm)
    out_indices = nl.ndarray((tokens, choices), dtype=nl.int32, buffer=nl.shared_hbm)
    dealt = tokens <= FEW_TOKENS and features % P == 0
    stored = load_weights(weight, dealt) if resident_bytes(weight) <= RESIDENT_BYTES else None
    grouping = (groups, groups_kept, group_rule)
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        logits = project(x[first:last, :], weight, bias, stored, dealt, first // P)
        store(out_logits[first:last, :], logits[:, 0:experts])
        scores = None
        ranked = logits
        if correction != None or (group_rule == "two" and groups > 1):  # noqa: E711 (the NKI compiler has no `is`)
            scores = score_all(logits, experts, function)
            ranked = correct(scores, experts, correction)
        if groups > 1:
            ranked = keep_groups(ranked, experts, grouping)
        values, indices, rest = best(ranked, choices)
        store(out_indices[first:last, :], indices[:, 0:choices])
        if dense:
            chosen = score_dense(logits, scores, ranked, rest, experts, function)
        elif scores == None:  # noqa: E711
            chosen = score_chosen(values, logits, experts, choices, function, normalize)
        else:
            chosen = nl.ndarray(values.shape, dtype=nl.float32, buffer=nl.sbuf)
            nisa.nc_n_gather(dst=chosen, data=scores, indices=indices)
        store_scores(out_scores[first:last, :], chosen[:, 0:width], normalize and not dense, scale)
    return out_logits, out_scores, out_indices


# Logits.


def element_bytes(tensor):
    """Return the size of an element; kernels take float32 and bfloat16."""
    return 4 if tensor.dtype == nl.float32 else 2


def chunk_count(features):
    """Return how many chunks of P hold the features, the last perhaps in part."""
    return (features + P - 1) // P


def resident_bytes(weight):
    """Return how much of each partition the whole weight takes."""
    return chunk_count(weight.shape[0]) * weight.shape[1] * element_bytes(weight)


def load(source_hbm):
    """Return a copy in SBUF."""
    loaded = nl.ndarray(source_hbm.shape, dtype=source_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=loaded, src=source_hbm)
    return loaded


def load_weights(weight, dealt):
    """Load weight [H, E] in pieces: a list of (first chunk, [rows, chunks, E] @ SBUF).

    The rows of a chunk are P neighbours, or, if `dealt`, those of `load_dealt`: longer runs in HBM.
    """
    features, columns = weight.shape
    chunks = features // P
    together = max(1, STREAM_BYTES // (columns * element_bytes(weight)))
    pieces = []
    for first in range(0, chunks, together):
        last = min(first + together, chunks)
        if dealt:
            rows = weight.reshape_dim(0, (P, chunks))[:, first:last, :]
        else:
            rows = weight[first * P : last * P, :].reshape_dim(0, (last - first, P)).permute((1, 0, 2))
        pieces.append((first, load(rows)))
    if chunks * P < features:
        pieces.append((chunks, load(weight[chunks * P : features, :].expand_dim(1))))
    return pieces


def load_dealt(x):
    """Return x^T for few tokens: partition p holds features p * J to p * J + J - 1, neighbours in HBM."""
    tokens, features = x.shape
    x_PTJ = nl.ndarray((P, tokens, features // P), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_PTJ, src=x.reshape((tokens, P, features // P)).permute((1, 0, 2)))
    return x_PTJ.permute((0, 2, 1))


def load_transposed(x, turn):
    """Return x^T for up to P tokens, transposed by TensorE: feature j * P + p is in chunk j of partition p.

    VectorE and ScalarE empty PSUM in turns, also from one `turn` to the next.
    """
    tokens, features = x.shape
    x_PJT = nl.ndarray((P, chunk_count(features), tokens), dtype=x.dtype, buffer=nl.sbuf)
    stage = STAGE_BYTES // element_bytes(x)
    for start in range(0, features, stage):
        stop = min(start + stage, features)
        rows_sbuf = load(x[:, start:stop])
        on_scalar_engine = (start // stage + turn) % 2 == 1
        transpose_chunks(x_PJT[:, start // P : chunk_count(stop), :], rows_sbuf, on_scalar_engine)
    return x_PJT


def transpose_chunks(dst_PJT, rows_sbuf, on_scalar_engine):
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
        if on_scalar_engine:  # gen2 has no tensor_copy on ScalarE
            nisa.activation(dst=dst_PJT[:, 0:chunks, :], op=nl.copy, data=flipped[:, :, 0:tokens])
        else:
            nisa.tensor_copy(
                dst=dst_PJT[:, 0:chunks, :], src=flipped[:, :, 0:tokens], engine=nisa.engine.vector
            )
    tail = width % P
    if tail > 0:
        flipped = nl.ndarray((tail, tokens), dtype=rows_sbuf.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=flipped, data=rows_sbuf[:, chunks * P : width], engine=nisa.engine.tensor)
        nisa.tensor_copy(dst=dst_PJT[0:tail, chunks, :], src=flipped, engine=nisa.engine.vector)


def project(x, weight, bias, stored, dealt, turn):
    """Return x @ weight + bias for up to P tokens: [tokens, E or 8] float32 @ SBUF, LOWEST beyond E."""
    tokens = x.shape[0]
    experts = weight.shape[1]
    x_PJT = load_dealt(x) if dealt else load_transposed(x, turn)
    sums = nl.ndarray((tokens, experts), dtype=nl.float32, buffer=nl.psum)
    pieces = stored if stored != None else load_weights(weight, dealt)  # noqa: E711
    for first_chunk, piece in pieces:
        for chunk in range(piece.shape[1]):
            nisa.nc_matmul(
                dst=sums,
                stationary=x_PJT[0 : piece.shape[0], first_chunk + chunk, :],
                moving=piece[:, chunk, :],
                accumulate=first_chunk + chunk > 0,
            )
    if bias != None:  # noqa: E711
        ones_sbuf = nl.ndarray((1, tokens), dtype=bias.dtype, buffer=nl.sbuf)
        nisa.memset(dst=ones_sbuf, value=1.0)
        nisa.nc_matmul(dst=sums, stationary=ones_sbuf, moving=load(bias.expand_dim(0)), accumulate=True)
    logits = padded(tokens, experts)
    nisa.tensor_copy(dst=logits[:, 0:experts], src=sums, engine=nisa.engine.vector)
    return logits


def padded(tokens, width):
    """Return a tile for `width` values of each token, at least as wide as `max8` needs; LOWEST beyond."""
    tile = nl.ndarray((tokens, max(width, EIGHT)), dtype=nl.float32, buffer=nl.sbuf)
    if width < EIGHT:
        nisa.memset(dst=tile, value=LOWEST)
    return tile


# Choice.


def score_all(logits, experts, function):
    """Return function(logits) of all experts: [tokens, E or 8] float32 @ SBUF."""
    scores = padded(logits.shape[0], experts)
    if function == "sigmoid":
        nisa.activation(dst=scores[:, 0:experts], op=nl.sigmoid, data=logits[:, 0:experts])
        return scores
    total, _ = exponentials(scores[:, 0:experts], logits[:, 0:experts])
    divide(scores[:, 0:experts], total)
    return scores


def exponentials(dst, logits):
    """Write exp(logits - their maximum); return the sum of each row and the maximum's opposite, [tokens, 1] each."""
    tokens = logits.shape[0]
    opposite = nl.ndarray((tokens, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=opposite, op=nl.maximum, data=logits, axis=1, negate=True)
    total = nl.ndarray((tokens, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation_reduce(dst=dst, op=nl.exp, data=logits, reduce_op=nl.add, reduce_res=total, bias=opposite)
    return total, opposite


def divide(values, total):
    """Divide each row by its total, in place."""
    inverse = nl.ndarray(total.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=total)
    nisa.tensor_scalar(dst=values, data=values, op0=nl.multiply, operand0=inverse)


def correct(scores, experts, correction):
    """Return scores + correction."""
    if correction == None:  # noqa: E711
        return scores
    tokens = scores.shape[0]
    ranked = padded(tokens, experts)
    spread_sbuf = nl.ndarray((tokens, experts), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=spread_sbuf, src=correction.expand_dim(0).broadcast(0, tokens))
    nisa.tensor_tensor(dst=ranked[:, 0:experts], data1=scores[:, 0:experts], data2=spread_sbuf, op=nl.add)
    return ranked


def keep_groups(ranked, experts, grouping):
    """Return the ranked scores with those of all but the best groups far below the others."""
    groups, groups_kept, group_rule = grouping
    tokens = ranked.shape[0]
    size = experts // groups
    by_group = ranked[:, 0:experts].reshape_dim(1, (groups, size))
    top = nl.ndarray((tokens, groups, EIGHT), dtype=nl.float32, buffer=nl.sbuf)
    for group in range(groups):
        members = padded(tokens, size)
        nisa.tensor_copy(dst=members[:, 0:size], src=by_group[:, group, :], engine=nisa.engine.vector)
        nisa.max8(dst=top[:, group, :], src=members)
    worth = padded(tokens, groups)
    if group_rule == "two":
        nisa.tensor_tensor(dst=worth[:, 0:groups], data1=top[:, :, 0], data2=top[:, :, 1], op=nl.add)
    else:
        nisa.tensor_copy(dst=worth[:, 0:groups], src=top[:, :, 0], engine=nisa.engine.vector)
    winners = nl.ndarray((tokens, EIGHT), dtype=nl.float32, buffer=nl.sbuf)
    nisa.max8(dst=winners, src=worth)
    if groups_kept < EIGHT:
        nisa.memset(dst=winners[:, groups_kept:EIGHT], value=ABSENT)
    losers = nl.ndarray(worth.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.nc_match_replace8(dst=losers, data=worth, vals=winners, imm=LOWEST)
    out = nl.ndarray((tokens, groups), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=out, data1=worth[:, 0:groups], data2=losers[:, 0:groups], op=nl.equal)
    nisa.tensor_scalar(dst=out, data=out, op0=nl.multiply, operand0=-FAR_BELOW)
    kept = padded(tokens, experts)
    nisa.tensor_tensor(
        dst=kept[:, 0:experts].reshape_dim(1, (groups, size)),
        data1=by_group,
        data2=out.expand_dim(2).broadcast(2, size),
        op=nl.add,
    )
    return kept


def best(ranked, choices):
    """Return the largest values of each row, best first, their places (uint32), and the row without them."""
    tokens = ranked.shape[0]
    rounds = (choices + EIGHT - 1) // EIGHT
    values = nl.ndarray((tokens, rounds * EIGHT), dtype=nl.float32, buffer=nl.sbuf)
    indices = nl.ndarray((tokens, rounds * EIGHT), dtype=nl.uint32, buffer=nl.sbuf)
    for start in range(0, rounds * EIGHT, EIGHT):
        found = values[:, start : start + EIGHT]
        nisa.max8(dst=found, src=ranked)
        nisa.nc_find_index8(dst=indices[:, start : start + EIGHT], data=ranked, vals=found)
        if choices < start + EIGHT:
            taken = nl.ndarray((tokens, EIGHT), dtype=nl.float32, buffer=nl.sbuf)
            nisa.memset(dst=taken, value=ABSENT)
            nisa.tensor_copy(
                dst=taken[:, 0 : choices - start],
                src=found[:, 0 : choices - start],
                engine=nisa.engine.vector,
            )
            found = taken
        rest = nl.ndarray(ranked.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.nc_match_replace8(dst=rest, data=ranked, vals=found, imm=LOWEST)
        ranked = rest
    return values, indices, ranked


# Scores.


def score_chosen(values, logits, experts, choices, function, normalize):
    """Return the scores of the chosen experts from their logits, the largest first."""
    tokens = values.shape[0]
    chosen = nl.ndarray((tokens, choices), dtype=nl.float32, buffer=nl.sbuf)
    if function == "sigmoid":
        nisa.activation(dst=chosen, op=nl.sigmoid, data=values[:, 0:choices])
    elif normalize:  # the sum over all experts cancels
        exponentials(chosen, values[:, 0:choices])
    else:
        of_all = nl.ndarray((tokens, experts), dtype=nl.float32, buffer=nl.sbuf)
        total, opposite = exponentials(of_all, logits[:, 0:experts])
        nisa.activation(dst=chosen, op=nl.exp, data=values[:, 0:choices], bias=opposite)
        divide(chosen, total)
    return chosen


def score_dense(logits, scores, ranked, rest, experts, function):
    """Return the scores of all experts, zero where one is not chosen: [tokens, E] float32 @ SBUF."""
    if scores == None:  # noqa: E711
        scores = score_all(logits, experts, function)
    taken = nl.ndarray((logits.shape[0], experts), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=taken, data1=ranked[:, 0:experts], data2=rest[:, 0:experts], op=nl.not_equal)
    nisa.tensor_tensor(dst=taken, data1=taken, data2=scores[:, 0:experts], op=nl.multiply)
    return taken


def store_scores(out_hbm, chosen, normalize, scale):
    """Divide each row by its sum if asked to, multiply it by `scale`, and store it."""
    if normalize:
        total = nl.ndarray((chosen.shape[0], 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=total, op=nl.add, data=chosen, axis=1)
        nisa.tensor_scalar(dst=total, data=total, op0=nl.add, operand0=LEAST_SUM)
        divide(chosen, total)
    if scale != 1.0:
        nisa.tensor_scalar(dst=chosen, data=chosen, op0=nl.multiply, operand0=scale)
    store(out_hbm, chosen)


def store(out_hbm, tile_sbuf):
    """Convert to the dtype of the result and store."""
    out_sbuf = nl.ndarray(out_hbm.shape, dtype=out_hbm.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=out_sbuf, src=tile_sbuf, engine=nisa.engine.vector)
    nisa.dma_copy(dst=out_hbm, src=out_sbuf)
