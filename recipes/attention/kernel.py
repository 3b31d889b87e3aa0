"""Attention over whole sequences: causal or not, windowed, chunked, biased, capped, with sinks, grouped heads.

Two passes over the keys that a tile of queries can see. The first has queries on the partitions and keeps nothing but
each query's largest score. The second computes the scores again, transposed: keys on the partitions, the queries of up
to four heads beside each other. TensorE subtracts the maximum itself (ones times -maximum accumulates on the scores),
so ScalarE's exponential leaves PSUM as the very operand that meets the values. Nothing of size S x C is transposed,
copied or rescaled, and the sum of the weights is one more column of the values.

Rules (causal, window, chunk) need no tensor: chunks of keys that a tile never sees are not touched, those that it sees
in part are masked. Biases join the scores as products with an identity, which also spreads and transposes them.

Legend: B = batch, S = queries, C = keys, Q = query heads, G = key/value heads, D = head dimension of queries and keys,
E = of values, chunk = 128 keys, rows = heads of a block x queries of a tile, wave = blocks that share instructions,
columns = wave x rows, pieces = parts of D of at most 128, rules = (keys seen before, after, chunk size), each or None.
"""

import nki
import nki.isa as nisa
import nki.language as nl

# Added to scores that a rule hides: far below any score, and in range of float32 and bfloat16.
MASKED = -3e38
# Keys whose scores are in PSUM at once for the maximum: two banks. Also two banks of transposed scores.
KEY_BLOCK = 512
BANKS_PER_STEP = 2
# Half of TensorE's rows: products of few rows run beside each other in halves.
ROW_TILE = 64
# Steps between two changes of ScalarE's table, where a soft cap needs tanh and exp in turn (1.3 us each).
STEPS_PER_SPAN_CAPPED = 6
# Largest soft cap: capped scores meet exp without their maximum, and exp(60) still sums far below float32's range.
MAX_SOFTCAP = 60.0
# Bytes per partition: keys and values of the resident heads, of which two sets fit; of one head that takes more, with
# its biases; queries of a tile; one bias of a wave.
KEY_VALUE_BYTES = 56 * 1024
MOST_HEAD_BYTES = 130 * 1024
QUERY_BYTES = 8 * 1024
BIAS_BYTES = 16 * 1024


def item_bytes(tensor):
    """Returns the bytes of one element, 2 or 4."""
    return 2 if tensor.dtype == nl.bfloat16 or tensor.dtype == nl.float16 else 4


def ceiling(value, divisor):
    """Returns value / divisor, rounded up."""
    return (value + divisor - 1) // divisor


def heads_per_block(group, queries):
    """Returns how many heads of a group share the partitions: the largest divisor of it that fits."""
    heads = 1
    for divisor in range(1, group + 1):
        if group % divisor == 0 and divisor * queries <= nl.tile_size.pmax:
            heads = divisor
    return heads


# ---- rules ---------------------------------------------------------------------------------------------------


def make_rules(queries, keys, is_causal, window_before, window_after, chunk_size):
    """Returns (before, after, chunk size) as numbers; where there is no bound, one that no key reaches."""
    longest = max(queries, keys)
    before = longest if window_before == None else window_before  # noqa: E711 (the compiler knows no `is`)
    after = longest if window_after == None else window_after  # noqa: E711
    chunk = longest if chunk_size == None else chunk_size  # noqa: E711
    return before, 0 if is_causal else after, chunk


def visible_chunks(first_query, end_query, keys, rules):
    """Returns the first chunk of keys that queries first_query..end_query - 1 see any of, and the end."""
    before, after, chunk_size = rules
    first = max(0, first_query - before, first_query // chunk_size * chunk_size)
    end = min(keys, end_query + after, ceiling(end_query, chunk_size) * chunk_size)
    return first // nl.tile_size.pmax, ceiling(end, nl.tile_size.pmax)


def sees_all(first_query, end_query, first_key, end_key, rules):
    """Returns whether each of these queries sees each of these keys."""
    before, after, chunk_size = rules
    in_window = end_query - 1 - first_key <= before and end_key - 1 - first_query <= after
    return (
        in_window and min(first_query, first_key) // chunk_size == (max(end_query, end_key) - 1) // chunk_size
    )


def keep_where(tile, offset, row_step, column_step, value):
    """Writes `value` where offset + row_step x row + column_step x column < 0 in tile [rows, n, columns] @ SBUF."""
    nisa.affine_select(
        dst=tile,
        pattern=[[0, tile.shape[1]], [column_step, tile.shape[2]]],
        offset=offset,
        channel_multiplier=row_step,
        on_true_tile=tile,
        on_false_value=value,
        cmp_op=nl.greater_equal,
    )


def hide(tile, first_query, first_key, rules, queries_on_rows, value):
    """Writes `value` over what the rules hide in tile [queries, n, keys] or [keys, n, queries] @ SBUF."""
    before, after, chunk_size = rules
    queries, keys = (tile.shape[0], tile.shape[2]) if queries_on_rows else (tile.shape[2], tile.shape[0])
    sign = 1 if queries_on_rows else -1  # of the row in (query - key)
    if first_key + keys - 1 - first_query > after:
        keep_where(tile, first_query - first_key + after, sign, -sign, value)
    if first_query + queries - 1 - first_key > before:
        keep_where(tile, first_key - first_query + before, -sign, sign, value)

    first_row, first_column = (first_query, first_key) if queries_on_rows else (first_key, first_query)
    end_column = first_column + tile.shape[2]
    for start in range(first_column // chunk_size * chunk_size, end_column, chunk_size):
        part = tile[
            :, :, max(start, first_column) - first_column : min(start + chunk_size, end_column) - first_column
        ]
        if first_row < start:
            keep_where(part, first_row - start, 1, 0, value)
        if first_row + tile.shape[0] > start + chunk_size:
            keep_where(part, start + chunk_size - 1 - first_row, -1, 0, value)


def additive_mask(known, first_query, end_query, first_key, end_key, rules, dtype):
    """Returns 0 or MASKED for each query and key, [queries, keys] @ SBUF; `known` keeps those made before."""
    place = first_query % rules[2]
    key = (first_key - first_query, end_query - first_query, end_key - first_key, place)
    for known_key, mask in known:
        if known_key == key:
            return mask
    mask = nl.ndarray((end_query - first_query, 1, end_key - first_key), dtype=dtype, buffer=nl.sbuf)
    nisa.memset(mask, value=0.0, engine=nisa.engine.gpsimd)
    hide(mask, first_query, first_key, rules, True, MASKED)
    known.append((key, mask[:, 0, :]))
    return mask[:, 0, :]


# ---- loading -------------------------------------------------------------------------------------------------


def transpose_blocks(dst, data, scale):
    """Transposes data[:, i, :] [p, D] @ SBUF to dst[:, piece, i, :] [D, p] @ SBUF, several per PSUM bank.

    `scale` multiplies the result unless it is 1.
    """
    pmax = nl.tile_size.pmax
    partitions, blocks, head_dim = data.shape
    per_bank = nl.tile_size.psum_bank_fmax_bytes // (partitions * item_bytes(data))
    for first_column in range(0, head_dim, pmax):
        depth = min(pmax, head_dim - first_column)
        for first in range(0, blocks, per_bank):
            end = min(first + per_bank, blocks)
            bank = nl.ndarray((depth, end - first, partitions), dtype=data.dtype, buffer=nl.psum)
            for i in range(first, end):
                nisa.nc_transpose(
                    dst=bank[:, i - first, :],
                    data=data[:, i, first_column : first_column + depth],
                    engine=nisa.engine.tensor,
                )
            part = dst[0:depth, first_column // pmax, first:end, :]
            if scale == 1.0:
                nisa.tensor_copy(dst=part, src=bank)
            else:
                nisa.tensor_scalar(dst=part, data=bank, op0=nl.multiply, operand0=scale)


def load_keys_and_values(k_hbm, v_hbm):
    """Returns K^T [128, pieces, g, C] and [V, 1] [128, chunks, g, E + 1] @ SBUF for k, v [C, g, D or E] @ HBM."""
    tokens, heads, head_dim = k_hbm.shape
    value_dim = v_hbm.shape[2]
    pmax = nl.tile_size.pmax
    pieces, chunks = ceiling(head_dim, pmax), ceiling(tokens, pmax)
    keys = nl.ndarray((min(head_dim, pmax), pieces, heads, tokens), dtype=k_hbm.dtype, buffer=nl.sbuf)
    values = nl.ndarray((pmax, chunks, heads, value_dim + 1), dtype=v_hbm.dtype, buffer=nl.sbuf)
    nisa.memset(values[:, :, :, value_dim : value_dim + 1], value=1.0, engine=nisa.engine.gpsimd)
    for chunk in range(chunks):
        first, end = chunk * pmax, min((chunk + 1) * pmax, tokens)
        rows = nl.ndarray((end - first, heads, head_dim), dtype=k_hbm.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=rows, src=k_hbm[first:end])
        transpose_blocks(keys[:, :, :, first:end], rows, 1.0)
        nisa.dma_copy(dst=values[0 : end - first, chunk, :, 0:value_dim], src=v_hbm[first:end])
    return keys, values


def load_bias(bias_hbm, heads, first_query, end_query, first_key, end_key, identity):
    """Returns a bias [p, wave or 1, keys] @ SBUF and what spreads it over rows [p, heads, queries] @ SBUF.

    Args:
        bias_hbm: [wave x heads or 1, S or 1, C] @ HBM, of a wave's heads; p = its heads of a block x its queries.
        heads: of a block.
    """
    own_heads = 1 if bias_hbm.shape[0] == 1 else heads
    own_queries = 1 if bias_hbm.shape[1] == 1 else end_query - first_query
    seen = bias_hbm[:, 0:1] if bias_hbm.shape[1] == 1 else bias_hbm[:, first_query:end_query]
    wave = bias_hbm.shape[0] // own_heads
    partitions = own_heads * own_queries
    bias = nl.ndarray((partitions, wave, end_key - first_key), dtype=bias_hbm.dtype, buffer=nl.sbuf)
    view = seen[:, :, first_key:end_key].reshape_dim(0, (wave, own_heads))
    nisa.dma_copy(dst=bias, src=view.permute((1, 2, 0, 3)))

    spread = identity[0:partitions, 0:partitions].reshape_dim(1, (own_heads, own_queries))
    if own_heads < heads:
        spread = spread.broadcast(1, heads)
    if own_queries < end_query - first_query:
        spread = spread.broadcast(2, end_query - first_query)
    return bias, spread


def load_sinks(sinks_hbm, heads, queries, scale):
    """Returns sinks [heads x queries, blocks] @ SBUF, f32, divided by scale, for sinks [blocks x heads] @ HBM."""
    blocks = sinks_hbm.shape[0] // heads
    sinks = nl.ndarray((heads * queries, blocks), dtype=nl.float32, buffer=nl.sbuf)
    view = sinks_hbm.reshape((blocks, heads)).permute((1, 0)).expand_dim(1).broadcast(1, queries)
    nisa.dma_copy(dst=sinks, src=view)
    if scale != 1.0:
        nisa.tensor_scalar(dst=sinks, data=sinks, op0=nl.multiply, operand0=1.0 / scale)
    return sinks


# ---- first pass: the maximum ---------------------------------------------------------------------------------


def add_scores(dst, task, wave, block, first_key):
    """Accumulates what one block's softmax sees on dst [rows, keys] @ PSUM, part of a bank, from first_key on.

    That is scores (unless a soft cap bounds them), biases and masks.
    """
    pmax = nl.tile_size.pmax
    end_key = first_key + dst.shape[1]
    started = False
    if task["softcap"] == 0.0:
        for piece, depth in task["pieces"]:
            nisa.nc_matmul(
                dst=dst,
                stationary=wave["queries"][0:depth, piece, block, :],
                moving=wave["keys"][0:depth, piece, wave["key_heads"][block], first_key:end_key],
                accumulate=started,
            )
            started = True
    for bias, spread in wave["biases"]:
        own = min(block, bias.shape[1] - 1)
        skipped = wave["first_chunk"] * pmax
        nisa.nc_matmul(
            dst=dst,
            stationary=spread,
            moving=bias[:, own, first_key - skipped : end_key - skipped],
            accumulate=started,
        )
        started = True
    first_query, end_query = wave["first_query"], wave["end_query"]
    for start in range(first_key, end_key, pmax):
        end = min(start + pmax, end_key)
        if not sees_all(first_query, end_query, start, end, task["rules"]):
            mask = additive_mask(
                task["masks"], first_query, end_query, start, end, task["rules"], task["identity"].dtype
            )
            nisa.nc_matmul(
                dst=dst[:, start - first_key : end - first_key],
                stationary=wave["spread"],
                moving=mask,
                accumulate=True,
            )


def maximum_parts(wave):
    """Returns what the maximum is found from: (first block, end, first key, end, column of the partial maxima).

    Several blocks share a part where their keys fit a PSUM bank, else a part has up to KEY_BLOCK keys of one block.
    """
    blocks = wave["queries"].shape[2]
    first_key, end_key = wave["first_chunk"] * nl.tile_size.pmax, wave["end_key"]
    parts = []
    if end_key - first_key <= nl.tile_size.psum_bank_fmax:
        per_bank = nl.tile_size.psum_bank_fmax // (end_key - first_key)
        for first in range(0, blocks, per_bank):
            parts.append((first, min(first + per_bank, blocks), first_key, end_key, 0))
    else:
        for block in range(blocks):
            for start in range(first_key, end_key, KEY_BLOCK):
                column = (start - first_key) // KEY_BLOCK
                parts.append((block, block + 1, start, min(start + KEY_BLOCK, end_key), column))
    return parts


def find_part(task, wave, part):
    """Writes the largest scores of one part to its column of the wave's partial maxima."""
    first_block, end_block, first_key, end_key, column = part
    rows, width = wave["queries"].shape[3], end_key - first_key
    bank = nl.tile_size.psum_bank_fmax
    scores = nl.ndarray((rows, end_block - first_block, width), dtype=nl.float32, buffer=nl.psum)
    for block in range(first_block, end_block):
        for start in range(0, width, bank):
            end = min(start + bank, width)
            add_scores(scores[:, block - first_block, start:end], task, wave, block, first_key + start)
    nisa.tensor_reduce(
        dst=wave["partial"][:, first_block:end_block, column], op=nl.maximum, data=scores, axis=2
    )


def finish_maximum(task, wave):
    """Completes the first pass: the wave's maxima [rows, wave], with sinks, and their negation as rows."""
    partial = wave["partial"]
    if len(wave["parts"]) > 0:
        maximum = partial[:, :, 0]
        if partial.shape[2] > 1:
            maximum = nl.ndarray(partial.shape[0:2], dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_reduce(dst=maximum, op=nl.maximum, data=partial, axis=2)
        wave["maximum"].append(maximum)
    for sinks in wave["sinks"]:
        raised = nl.ndarray(sinks.shape, dtype=nl.float32, buffer=nl.sbuf)
        if len(wave["maximum"]) > 0:
            nisa.tensor_tensor(dst=raised, data1=wave["maximum"][0], data2=sinks, op=nl.maximum)
        else:  # a soft cap needs no maximum, but sinks may be large
            nisa.tensor_scalar(dst=raised, data=sinks, op0=nl.maximum, operand0=0.0)
        wave["maximum"] = [raised]
    for maximum in wave["maximum"]:
        wave["negated"].append(negated_row(maximum, task["identity"]))


def negated_row(maximum, identity):
    """Returns -maximum [rows, wave] @ SBUF as rows 0 and 1, and once more as ROW_TILE and ROW_TILE + 1.

    Two rows whose sum it is, because one bfloat16 number would be off by up to 1/256 of the maximum; [.., wave, rows] @
    SBUF, in identity's dtype.
    """
    rows, blocks = maximum.shape
    used = ROW_TILE + 2
    columns = nl.ndarray((rows, blocks, 2, ROW_TILE), dtype=identity.dtype, buffer=nl.sbuf)
    nisa.memset(columns, value=0.0, engine=nisa.engine.gpsimd)
    spread = maximum.expand_dim(2).broadcast(2, 2)
    nisa.tensor_scalar(dst=columns[:, :, :, 0], data=spread, op0=nl.multiply, operand0=-1.0)
    nisa.scalar_tensor_tensor(
        dst=columns[:, :, :, 1],
        data=spread,
        op0=nl.multiply,
        operand0=-1.0,
        op1=nl.subtract,
        operand1=columns[:, :, :, 0],
    )
    row_psum = nl.ndarray((used, blocks, rows), dtype=nl.float32, buffer=nl.psum)
    for block in range(blocks):
        nisa.nc_matmul(
            dst=row_psum[:, block, :],
            stationary=columns[:, block].flatten_dims(1, 2)[:, 0:used],
            moving=identity[0:rows, 0:rows],
            accumulate=False,
        )
    row = nl.ndarray((used, blocks, rows), dtype=identity.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=row, src=row_psum)
    return row


# ---- second pass: the weights and their product with the values ----------------------------------------------


def add_keys_by_queries(dst, task, wave, first_key):
    """Writes transposed scores dst [keys, wave, rows] @ PSUM, from first_key on: K^T times all queries of a head."""
    end_key = first_key + dst.shape[0]
    blocks = dst.shape[1]
    first = 0
    while first < blocks:
        head = wave["key_heads"][first]
        end = first
        while end < blocks and wave["key_heads"][end] == head:
            end += 1
        for piece, depth in task["pieces"]:
            nisa.nc_matmul(
                dst=dst[:, first:end, :],
                stationary=wave["keys"][0:depth, piece, head, first_key:end_key],
                moving=wave["queries"][0:depth, piece, first:end, :],
                accumulate=piece > 0,
            )
        first = end


def add_shift_and_biases(dst, task, wave, first_key, turn, started):
    """Accumulates -maximum and the biases on dst [keys, wave, rows] @ PSUM; the first overwrites unless `started`.

    turn: 0 or 1 in turns: the two halves of TensorE's rows, which work beside each other on products of so few rows.
    """
    keys, blocks, _ = dst.shape
    own_rows = slice(turn * ROW_TILE, turn * ROW_TILE + 2)
    for row in wave["negated"]:
        nisa.nc_matmul(
            dst=dst,
            stationary=task["ones"][own_rows, 0:keys],
            moving=row[own_rows],
            accumulate=started,
            tile_position=(turn * ROW_TILE, 0),
            tile_size=(ROW_TILE, nl.tile_size.pmax),
        )
        started = True
    skipped = wave["first_chunk"] * nl.tile_size.pmax
    for bias, spread in wave["biases"]:
        part = bias[:, :, first_key - skipped : first_key - skipped + keys]
        if bias.shape[1] == 1:
            nisa.nc_matmul(
                dst=dst,
                stationary=part[:, 0, :],
                moving=spread.expand_dim(1).broadcast(1, blocks),
                accumulate=started,
            )
        else:
            for block in range(blocks):
                nisa.nc_matmul(
                    dst=dst[:, block, :], stationary=part[:, block, :], moving=spread, accumulate=started
                )
        started = True


def step_sizes(chunks, per_bank):
    """Returns how many chunks each step takes: whole banks as long as there are enough, then what is left."""
    sizes = []
    while chunks > 0:
        size = chunks if chunks < per_bank else min(chunks // per_bank, BANKS_PER_STEP) * per_bank
        sizes.append(size)
        chunks -= size
    return sizes


def chunk_of(banks_psum, chunk, per_bank, blocks, rows):
    """Returns one chunk's [keys, wave, rows] of a tile of whole banks [keys, banks, 512] @ PSUM."""
    used = banks_psum[:, chunk // per_bank, 0 : per_bank * blocks * rows]
    return used.reshape_dim(1, (per_bank, blocks, rows))[:, chunk % per_bank]


def transposed_scores(task, wave, first_chunk, chunks, keys):
    """Returns what exp takes, [keys, banks, chunks of a bank, columns], and its scale, for a few chunks of keys.

    In PSUM, but in SBUF where a soft cap applies: tanh is taken here.
    """
    _, _, blocks, rows = wave["queries"].shape
    pmax, bank = nl.tile_size.pmax, nl.tile_size.psum_bank_fmax
    columns = blocks * rows
    per_bank = min(bank // columns, chunks)
    banks = chunks // per_bank
    scores = nl.ndarray((keys, banks, bank), dtype=nl.float32, buffer=nl.psum)
    view = scores[:, :, 0 : per_bank * columns].reshape_dim(2, (per_bank, columns))
    for chunk in range(chunks):
        part = chunk_of(scores, chunk, per_bank, blocks, rows)
        add_keys_by_queries(part, task, wave, (first_chunk + chunk) * pmax)
    if task["softcap"] == 0.0:
        for chunk in range(chunks):
            part = chunk_of(scores, chunk, per_bank, blocks, rows)
            add_shift_and_biases(part, task, wave, (first_chunk + chunk) * pmax, chunk % 2, True)
        return view, task["scale"]

    result = nl.ndarray((keys, banks, per_bank, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=result, op=nl.tanh, data=view, scale=task["scale"] / task["softcap"])
    if len(wave["negated"]) == 0:
        return result, task["softcap"]
    shift = nl.ndarray((keys, banks, bank), dtype=nl.float32, buffer=nl.psum)
    for chunk in range(chunks):
        part = chunk_of(shift, chunk, per_bank, blocks, rows)
        add_shift_and_biases(part, task, wave, (first_chunk + chunk) * pmax, chunk % 2, False)
    nisa.scalar_tensor_tensor(
        dst=result,
        data=result,
        op0=nl.multiply,
        operand0=task["softcap"],
        op1=nl.add,
        operand1=shift[:, :, 0 : per_bank * columns].reshape_dim(2, (per_bank, columns)),
    )
    return result, 1.0


def weigh_values(sums, task, wave, scores, scale, first_chunk, is_first):
    """Takes the weights exp(scale x scores) of a step, and adds their product with the values to `sums`.

    Args:
        sums: [rows, blocks of a bank, E + 1] @ PSUM for every few blocks; the last column sums the weights.
        scores: [keys, banks, chunks of a bank, columns], of chunks from first_chunk on.
    """
    _, _, blocks, rows = wave["queries"].shape
    keys, banks, per_bank, columns = scores.shape
    pmax = nl.tile_size.pmax
    weights = nl.ndarray((keys, banks * per_bank, columns), dtype=wave["values"].dtype, buffer=nl.sbuf)
    nisa.activation(dst=weights, op=nl.exp, data=scores, scale=scale)
    first_query, end_query = wave["first_query"], wave["end_query"]
    per_sum = sums[0].shape[1]
    for chunk in range(banks * per_bank):
        first_key = (first_chunk + chunk) * pmax
        if not sees_all(first_query, end_query, first_key, first_key + keys, task["rules"]):
            heads = columns // (end_query - first_query)
            part = weights[:, chunk, :].reshape_dim(1, (heads, end_query - first_query))
            hide(part, first_query, first_key, task["rules"], False, 0.0)
        for block in range(blocks):
            nisa.nc_matmul(
                dst=sums[block // per_sum][:, block % per_sum, :],
                stationary=weights[:, chunk, block * rows : (block + 1) * rows],
                moving=wave["values"][0:keys, first_chunk + chunk, wave["key_heads"][block], :],
                accumulate=chunk > 0 or not is_first,
            )


def second_pass_steps(wave):
    """Returns the steps of the second pass: (first chunk, chunks, keys of a chunk); a short last chunk is its own."""
    pmax = nl.tile_size.pmax
    _, _, blocks, rows = wave["queries"].shape
    first_chunk, whole = wave["first_chunk"], wave["end_key"] // pmax
    steps = []
    for size in step_sizes(whole - first_chunk, nl.tile_size.psum_bank_fmax // (blocks * rows)):
        steps.append((first_chunk, size, pmax))
        first_chunk += size
    if wave["end_key"] > whole * pmax:
        steps.append((whole, 1, wave["end_key"] - whole * pmax))
    return steps


def run_passes(task, wave, following):
    """Runs the second pass of `wave`, and between its steps the first of the wave that follows (a list of at most one).

    The second pass keeps ScalarE busy, the first VectorE: side by side TensorE never waits for either.
    """
    value_dim = wave["out"].shape[2]
    _, _, blocks, rows = wave["queries"].shape
    per_sum = min(nl.tile_size.psum_bank_fmax // (value_dim + 1), blocks)
    sums = []
    for first in range(0, blocks, per_sum):
        shape = (rows, min(per_sum, blocks - first), value_dim + 1)
        sums.append(nl.ndarray(shape, dtype=nl.float32, buffer=nl.psum))

    steps = second_pass_steps(wave)
    per_span = STEPS_PER_SPAN_CAPPED if task["softcap"] > 0.0 else 1
    for first in range(0, len(steps), per_span):
        span = steps[first : min(first + per_span, len(steps))]
        ready = []
        for first_chunk, chunks, keys in span:
            ready.append(transposed_scores(task, wave, first_chunk, chunks, keys))
        for next_wave in following:
            parts = next_wave["parts"]
            done = len(parts) * first // len(steps)
            for part in parts[done : len(parts) * (first + len(span)) // len(steps)]:
                find_part(task, next_wave, part)
        for step in range(len(span)):
            scores, scale = ready[step]
            weigh_values(sums, task, wave, scores, scale, span[step][0], first + step == 0)
    for next_wave in following:
        finish_maximum(task, next_wave)
    for first in range(0, blocks, per_sum):
        end = min(first + per_sum, blocks)
        normalize(wave["out"][:, first:end, :], sums[first // per_sum], task, wave, first)
    for out_hbm, out_sbuf in wave["store"]:
        nisa.dma_copy(dst=out_hbm, src=out_sbuf)


def normalize(out_sbuf, sums, task, wave, first_block):
    """Divides sums [rows, blocks, E + 1] @ PSUM by their last column and the sink, into out_sbuf [rows, blocks, E]."""
    rows, blocks, value_dim = out_sbuf.shape
    total = sums[:, :, value_dim]
    for sinks in wave["sinks"]:
        end_block = first_block + blocks
        share = nl.ndarray((rows, blocks), dtype=nl.float32, buffer=nl.sbuf)
        maximum = wave["maximum"][0][:, first_block:end_block]
        nisa.tensor_tensor(dst=share, data1=sinks[:, first_block:end_block], data2=maximum, op=nl.subtract)
        nisa.activation(dst=share, op=nl.exp, data=share, scale=task["exp_scale"])
        nisa.tensor_tensor(dst=share, data1=share, data2=total, op=nl.add)
        total = share
    inverse = nl.ndarray((rows, blocks), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=total)
    nisa.tensor_tensor(
        dst=out_sbuf,
        data1=sums[:, :, 0:value_dim],
        data2=inverse.expand_dim(2).broadcast(2, value_dim),
        op=nl.multiply,
    )


# ---- the kernel ----------------------------------------------------------------------------------------------


def key_value_bytes(q, k, v):
    """Returns the bytes per partition of the keys and values of one head."""
    tokens, head_dim = k.shape[1], k.shape[3]
    pmax = nl.tile_size.pmax
    pieces, chunks = ceiling(head_dim, pmax), ceiling(tokens, pmax)
    return (pieces * tokens + chunks * (v.shape[3] + 1)) * item_bytes(q)


def heads_resident(q, k, v, biases):
    """Returns for how many key/value heads keys, values and a tile's queries are held in SBUF at once."""
    tokens, kv_heads, head_dim = k.shape[1], k.shape[2], k.shape[3]
    head_bytes = key_value_bytes(q, k, v)
    bias_bytes = 2 * biases * tokens * item_bytes(q)  # of two waves
    assert head_bytes + bias_bytes <= MOST_HEAD_BYTES, (
        f"attention: keys, values and biases of {tokens} tokens take {head_bytes + bias_bytes} bytes per partition, "
        f"at most {MOST_HEAD_BYTES}: split the sequence"
    )
    query_bytes = q.shape[2] // kv_heads * head_dim * item_bytes(q)
    return max(1, min(kv_heads, KEY_VALUE_BYTES // head_bytes, QUERY_BYTES // query_bytes))


def check_arguments(q, k, v, rules, scale, softcap):
    """Refuses what the kernel is not made for, by name."""
    queries, query_heads, head_dim = q.shape[1], q.shape[2], q.shape[3]
    keys, kv_heads = k.shape[1], k.shape[2]
    assert query_heads % kv_heads == 0, f"attention: {query_heads} query heads over {kv_heads} key heads"
    assert max(head_dim, v.shape[3]) <= 256, (
        f"attention: head dimensions {head_dim} and {v.shape[3]}, at most 256"
    )
    assert scale > 0.0, f"attention: scale {scale} must be positive"
    assert softcap <= MAX_SOFTCAP, f"attention: soft cap {softcap}, at most {MAX_SOFTCAP}"
    bounded = min(rules[0], rules[1], rules[2]) < max(queries, keys)
    assert queries == keys or not bounded, (
        f"attention: {queries} queries and {keys} keys, but a causal, window or chunk rule needs as many of each"
    )


@nki.jit
def attention(
    q,
    k,
    v,
    bias=None,
    position_bias=None,
    sinks=None,
    scale=1.0,
    is_causal=True,
    window_before=None,
    window_after=None,
    chunk_size=None,
    softcap=None,
):
    """Attends from each query to the keys that it sees.

    Args:
        q: [B, S, Q, D] @ HBM, f32 or bf16; Q a multiple of G, D <= 256.
        k: [B, C, G, D] @ HBM, dtype of q.
        v: [B, C, G, E] @ HBM, dtype of q; E <= 256. Keys and values of a head stay in SBUF: 8192 keys in f32 and 16384
            in bf16 for D = E = 256, twice that for 128; less with biases.
        bias, position_bias: [B or 1, Q or 1, S or 1, C] @ HBM, dtype of q, or None: added to the scaled scores. At
            most one of the two may be the dtype's lowest number at a place.
        sinks: [Q] @ HBM, dtype of q, or None: a score for each head that takes weight and gives no value.
        scale: multiplies the scores (before softmax); positive.
        is_causal: a query sees the keys up to its own place. This, window and chunk need S = C.
        window_before, window_after: a query sees this many keys before and after its own place, or None.
        chunk_size: a query sees the keys of its own chunk, or None.
        softcap: scores become softcap x tanh(scores / softcap) before biases, or None; at most 60.
    Returns: [B, S, Q, E] @ HBM, dtype of q.
    Accuracy: scores, softmax and sums are f32; the weights are rounded to q's dtype before they meet v.
    """
    batch, tokens, query_heads, head_dim = q.shape
    keys, kv_heads, value_dim = v.shape[1], v.shape[2], v.shape[3]
    pmax = nl.tile_size.pmax
    rules = make_rules(tokens, keys, is_causal, window_before, window_after, chunk_size)
    cap = 0.0 if softcap == None else softcap  # noqa: E711
    check_arguments(q, k, v, rules, scale, cap)

    biases = []
    for given in (bias, position_bias):
        if given != None:  # noqa: E711
            biases.append(given)
    pieces = []
    for first in range(0, head_dim, pmax):
        pieces.append((first // pmax, min(pmax, head_dim - first)))
    ones = nl.ndarray((ROW_TILE + 2, pmax), dtype=q.dtype, buffer=nl.sbuf)
    nisa.memset(ones, value=1.0)
    # With biases the scores leave TensorE scaled, because the queries are: biases add to scaled scores.
    prescaled = len(biases) > 0 and cap == 0.0
    task = {
        "rules": rules,
        "scale": 1.0 if prescaled else scale,
        "query_scale": scale if prescaled else 1.0,
        "exp_scale": 1.0 if prescaled or cap > 0.0 else scale,  # from the maximum's units to the exponent's
        "softcap": cap,
        "pieces": pieces,
        "masks": [],
        "ones": ones,
        "identity": nl.shared_identity_matrix(n=pmax, dtype=q.dtype),
    }
    out = nl.ndarray((batch, tokens, query_heads, value_dim), dtype=q.dtype, buffer=nl.shared_hbm)
    group = query_heads // kv_heads
    resident = heads_resident(q, k, v, len(biases))
    # Two sets of keys and values in SBUF let the next heads' first pass run beside these heads' second.
    overlaps = resident * key_value_bytes(q, k, v) <= KEY_VALUE_BYTES
    waiting = []  # the wave whose second pass is next
    for b in range(batch):
        for first_head in range(0, kv_heads, resident):
            end_head = min(first_head + resident, kv_heads)
            if not overlaps:
                waiting = finish(task, waiting)
            loaded = load_keys_and_values(k[b, :, first_head:end_head], v[b, :, first_head:end_head])
            heads = slice(first_head * group, end_head * group)
            own_biases = []
            for given in biases:
                rows = given[b if given.shape[0] > 1 else 0]
                own_biases.append(rows if given.shape[1] == 1 else rows[heads])
            own_sinks = [] if sinks == None else [sinks[heads]]  # noqa: E711
            for first_query in range(0, tokens, pmax):
                own_rows = slice(first_query, min(first_query + pmax, tokens))
                waiting = attend_tile(
                    out[b, own_rows, heads],
                    q[b, own_rows, heads],
                    loaded,
                    task,
                    first_query,
                    own_biases,
                    own_sinks,
                    waiting,
                )
    finish(task, waiting)
    return out


def finish(task, waiting):
    """Runs the second pass of the wave that waits for it, if one does; returns that none does any more."""
    for wave in waiting:
        run_passes(task, wave, [])
    return []


def attend_tile(out_hbm, q_hbm, loaded, task, first_query, biases_hbm, sinks_hbm, waiting):
    """Attends from a tile of queries q [queries, g x R, D] @ HBM to the loaded keys and values, into out_hbm.

    Args:
        first_query: place of the tile's first query.
        biases_hbm: [g x R or 1, S or 1, C] @ HBM each.
        sinks_hbm: none or one [g x R] @ HBM.
        waiting: the wave before, in a list; this function runs its second pass.
    Returns: the tile's last wave in a list: its second pass is still to be run.
    """
    queries, query_heads, head_dim = q_hbm.shape
    keys, values = loaded
    value_dim, kv_heads, key_count = out_hbm.shape[2], keys.shape[2], keys.shape[3]
    group = query_heads // kv_heads
    pmax, bank = nl.tile_size.pmax, nl.tile_size.psum_bank_fmax
    heads = heads_per_block(group, queries)
    blocks, rows = query_heads // heads, heads * queries
    end_query = first_query + queries

    # [S, blocks x heads, D] as [heads, S, blocks, D]: partitions are (head, query), free is (block, D).
    q_rows = nl.ndarray((rows, blocks, head_dim), dtype=q_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=q_rows, src=q_hbm.reshape_dim(1, (blocks, heads)).permute((2, 0, 1, 3)))
    q_shape = (min(head_dim, pmax), ceiling(head_dim, pmax), blocks, rows)
    q_blocks = nl.ndarray(q_shape, dtype=q_hbm.dtype, buffer=nl.sbuf)
    transpose_blocks(q_blocks, q_rows, task["query_scale"])

    first_chunk, end_chunk = visible_chunks(first_query, end_query, key_count, task["rules"])
    first_key, end_key = first_chunk * pmax, min(end_chunk * pmax, key_count)
    sinks = []
    for given in sinks_hbm:
        sinks.append(load_sinks(given, heads, queries, task["exp_scale"]))
    out_rows = nl.ndarray((rows, blocks, value_dim), dtype=out_hbm.dtype, buffer=nl.sbuf)
    # A wave's columns fit one PSUM bank, its products two, its biases their share of SBUF.
    bias_bytes = (end_key - first_key) * item_bytes(q_hbm)
    most = max(1, BIAS_BYTES // bias_bytes) if len(biases_hbm) > 0 else blocks
    most_in_wave = max(1, min(bank // rows, 2 * (bank // (value_dim + 1)), most, blocks))
    for first in range(0, blocks, most_in_wave):
        end = min(first + most_in_wave, blocks)
        wave = {
            "queries": q_blocks[:, :, first:end, :],
            "keys": keys,
            "values": values,
            "out": out_rows[:, first:end, :],
            "store": [],
            "key_heads": [],
            "biases": [],
            "sinks": [],
            "maximum": [],
            "negated": [],
            "spread": task["identity"][0:queries, 0:queries].expand_dim(1).broadcast(1, heads),
            "first_query": first_query,
            "end_query": end_query,
            "first_chunk": first_chunk,
            "end_key": end_key,
        }
        for block in range(first, end):
            wave["key_heads"].append(block * heads // group)
        for given in biases_hbm:
            own = given if given.shape[0] == 1 else given[first * heads : end * heads]
            wave["biases"].append(
                load_bias(own, heads, first_query, end_query, first_key, end_key, task["identity"])
            )
        for given in sinks:
            wave["sinks"].append(given[:, first:end])
        if end == blocks:
            out_view = out_hbm.reshape_dim(1, (blocks, heads)).permute((2, 0, 1, 3))
            wave["store"].append((out_view, out_rows))
        wave["parts"] = maximum_parts(wave) if task["softcap"] == 0.0 or len(wave["biases"]) > 0 else []
        columns = wave["parts"][-1][4] + 1 if len(wave["parts"]) > 0 else 1
        wave["partial"] = nl.ndarray((rows, end - first, columns), dtype=nl.float32, buffer=nl.sbuf)
        if len(waiting) > 0:
            run_passes(task, waiting[0], [wave])
        else:
            for part in wave["parts"]:
                find_part(task, wave, part)
            finish_maximum(task, wave)
        waiting = [wave]
    return waiting
