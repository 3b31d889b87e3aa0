"""One token through the gated delta rule: every head's state forgets, unlearns what it knows of the key, takes it in.

The state is read once and written once. Key dimensions lie on the partitions. Products of a row with its own head's
state use operands that are zero for all other heads, so that heads end up on partitions by accumulation and the small
arithmetic between is one instruction for all of them.

Legend: B = batch, K = query/key heads, H = value heads, D = head dimension of queries and keys, E = of values,
R = rows of a group, a row being one value head of one batch row.
"""

import nki
import nki.isa as nisa
import nki.language as nl

NORM_EPSILON = 1e-6  # of the L2 norms, as in the reference
GROUP_ROWS = 32  # rows whose small arithmetic is done at once
PART_ROWS = 8  # rows that are loaded and stored at once: products begin when the first have come
QUADRANT = 32  # partitions: engines move data between partitions only by multiples of these


@nki.jit
def gated_delta_update(state, q, k, v, g, beta, normalize):
    """S = exp(g) state; new = S + k (beta (v - k S)); out = D^-0.5 q new, in each value head.

    Args:
        state: [B, H, D, E] @ HBM, float32. D at most 128, E at most 512.
        q, k: [B, K, D] @ HBM, float32 or bfloat16.
        v: [B, H, E] @ HBM; H a multiple of K, at most 64 K: value head h belongs to key head h // (H / K).
        g, beta: [B, H] @ HBM: logarithms of decay, and rates of writing.
        normalize: whether q and k are divided by their L2 norms first.
    Returns: out [B, H, E], dtype of q; and the new state [B, H, D, E], dtype of state. Both @ HBM.
    Accuracy: float32 throughout, each result rounded once.
    """
    batch, heads, depth, width = state.shape
    key_heads = k.shape[1]
    share = heads // key_heads
    assert heads % key_heads == 0, f"gated_delta_update: {heads} value heads over {key_heads} key heads"
    assert share <= nl.tile_size.pmax // 2, (
        f"gated_delta_update: {share} value heads for a key head, at most 64"
    )
    assert depth <= nl.tile_size.pmax, f"gated_delta_update: key dimension {depth}, at most 128"
    assert width <= nl.tile_size.psum_bank_fmax, f"gated_delta_update: value dimension {width}, at most 512"
    out = nl.ndarray((batch, heads, width), dtype=q.dtype, buffer=nl.shared_hbm)
    new = nl.ndarray(state.shape, dtype=state.dtype, buffer=nl.shared_hbm)
    rows = batch * heads
    identity = nl.shared_identity_matrix(n=nl.tile_size.pmax, dtype=nl.float32)
    state_rows, new_rows = state.reshape((rows, depth, width)), new.reshape((rows, depth, width))
    v_rows, out_rows = v.reshape((rows, width)), out.reshape((rows, width))
    g_rows, beta_rows = g.reshape((rows, 1)), beta.reshape((rows, 1))
    q_keys, k_keys = q.reshape((batch * key_heads, depth)), k.reshape((batch * key_heads, depth))

    keys_of_group = max(1, GROUP_ROWS // share)
    for first_key in range(0, batch * key_heads, keys_of_group):
        keys = slice(first_key, min(first_key + keys_of_group, batch * key_heads))
        group = slice(keys.start * share, keys.stop * share)
        q_sbuf = load_keys(q_keys[keys], share, normalize, depth**-0.5)
        k_sbuf = load_keys(k_keys[keys], share, normalize, 1.0)
        log_decay, rate, v_sbuf = (
            load_float(g_rows[group]),
            load_float(beta_rows[group]),
            load_float(v_rows[group]),
        )
        parts = load_parts(state_rows[group])  # behind the small loads, which all products wait for
        decay = nl.ndarray(log_decay.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=decay, op=nl.exp, data=log_decay)
        spread_decay = spread_columns(log_decay, depth, identity)
        known, read = read_state(parts, k_sbuf, q_sbuf, identity)
        written = correct(v_sbuf, known, decay, rate)
        update(new_rows[group], parts, spread_decay, k_sbuf, written)
        write_out(out_rows[group], read, decay, written, q_sbuf, k_sbuf)
    return out, new


def load_parts(state_hbm):
    """The states [R, D, E] @ HBM as a list of [D, up to 8 rows, E] @ SBUF, float32."""
    rows = state_hbm.shape[0]
    parts = []
    for first in range(0, rows, PART_ROWS):
        parts.append(load_float(state_hbm[first : min(first + PART_ROWS, rows)].permute((1, 0, 2))))
    return parts


def spread_columns(log_decay, depth, identity):
    """exp(log_decay [R, 1]) as a row in every partition: [D, R] @ SBUF."""
    rows = log_decay.shape[0]
    spread_psum = nl.ndarray((depth, rows), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=spread_psum,
        stationary=log_decay.broadcast(1, depth),
        moving=identity[0:rows, 0:rows],
        accumulate=False,
    )
    spread = nl.ndarray((depth, rows), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=spread, op=nl.exp, data=spread_psum)
    return spread


def load_float(source):
    """`source` @ HBM in SBUF, as float32; its first axis lies on the partitions."""
    tile = nl.ndarray(source.shape, dtype=source.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=source)
    if tile.dtype == nl.float32:
        return tile
    wide = nl.ndarray(source.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=wide, src=tile, engine=nisa.engine.vector)
    return wide


def load_keys(source, share, normalize, scale):
    """Keys [n, D] @ HBM, each for `share` rows: [R, D] @ SBUF, float32, normalized if asked, times `scale`."""
    count, depth = source.shape
    rows = nl.ndarray((count * share, depth), dtype=source.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=rows, src=source.expand_dim(1).broadcast(1, share))
    wide = nl.ndarray(rows.shape, dtype=nl.float32, buffer=nl.sbuf)
    if not normalize:
        nisa.activation(dst=wide, op=nl.copy, data=rows, scale=scale)
        return wide
    epsilon = nl.ndarray((count * share, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=epsilon, value=NORM_EPSILON)
    inverse = nl.ndarray((count * share, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation_reduce(dst=wide, op=nl.square, data=rows, reduce_op=nl.add, reduce_res=inverse)
    nisa.activation(dst=inverse, op=nl.rsqrt, data=inverse, bias=epsilon)
    nisa.tensor_scalar(
        dst=wide, data=rows, op0=nl.multiply, operand0=inverse, op1=nl.multiply, operand1=scale
    )
    return wide


def read_state(parts, k_sbuf, q_sbuf, identity):
    """k S and q S of each row's own head, [R, E] @ PSUM each; `parts` hold S.

    The stationary of row r is zero but for k in column r and q in column r of a second part, so that adding the
    products of all rows puts row r on partition r.
    """
    rows, depth = k_sbuf.shape
    width = parts[0].shape[2]
    second = QUADRANT if rows <= QUADRANT else nl.tile_size.pmax // 2
    selectors = nl.ndarray((depth, rows, second + rows), dtype=nl.float32, buffer=nl.sbuf)
    if second > rows:
        nisa.memset(dst=selectors[:, :, rows:second], value=0.0)
    select_own(selectors[:, :, 0:rows], k_sbuf, identity)
    select_own(selectors[:, :, second : second + rows], q_sbuf, identity)
    both = nl.ndarray((second + rows, width), dtype=nl.float32, buffer=nl.psum)
    for r in range(rows):
        nisa.nc_matmul(
            dst=both,
            stationary=selectors[:, r, :],
            moving=parts[r // PART_ROWS][:, r % PART_ROWS, :],
            accumulate=r > 0,
        )
    return both[0:rows], both[second : second + rows]


def select_own(target, rows_sbuf, identity):
    """target[d, r, s] = rows[r, d] where s = r, else 0; rows is [R, D] @ SBUF."""
    rows, depth = rows_sbuf.shape
    turned = nl.ndarray((depth, rows), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_transpose(dst=turned, data=rows_sbuf, engine=nisa.engine.tensor)
    columns = nl.ndarray((depth, rows), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=columns, src=turned, engine=nisa.engine.vector)
    nisa.affine_select(
        dst=target, pattern=[[1, rows], [-1, rows]], offset=0, channel_multiplier=0,
        on_true_tile=columns.expand_dim(2).broadcast(2, rows), on_false_value=0.0, cmp_op=nl.equal,
    )  # fmt: skip


def correct(v_sbuf, known, decay, rate):
    """rate (v - decay known): what each row writes, [R, E] @ SBUF."""
    remembered = nl.ndarray(v_sbuf.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=remembered, op=nl.copy, data=known, scale=decay)
    written = nl.ndarray(v_sbuf.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=written, data1=v_sbuf, data2=remembered, op=nl.subtract)
    nisa.tensor_scalar(dst=written, data=written, op0=nl.multiply, operand0=rate)
    return written


def write_out(out_hbm, read, decay, written, q_sbuf, k_sbuf):
    """q new = decay (q S) + (q k) written, [R, E]: the new state need not be read for it."""
    product = nl.ndarray(q_sbuf.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=product, data1=q_sbuf, data2=k_sbuf, op=nl.multiply)
    overlap = nl.ndarray(decay.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=overlap, op=nl.add, data=product, axis=1)
    across = nl.ndarray(written.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=across, src=read, engine=nisa.engine.vector)  # to the rows' own partitions
    nisa.tensor_scalar(dst=across, data=across, op0=nl.multiply, operand0=decay)
    out_sbuf = nl.ndarray(written.shape, dtype=out_hbm.dtype, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=out_sbuf, data=written, op0=nl.multiply, operand0=overlap, op1=nl.add, operand1=across
    )
    nisa.dma_copy(dst=out_hbm, src=out_sbuf)


def update(new_hbm, parts, decay, k_sbuf, written):
    """Write decay [D, R] S + k written of each row to new [R, D, E] @ HBM."""
    rows, width = written.shape
    per_bank = max(1, nl.tile_size.psum_bank_fmax // width)
    for first_row in range(0, rows, PART_ROWS):
        held = parts[first_row // PART_ROWS]
        depth, count, _ = held.shape
        own = nl.ndarray(
            (rows, count, width), dtype=nl.float32, buffer=nl.sbuf
        )  # values of row r at [r, r], else 0
        nisa.affine_select(
            dst=own, pattern=[[-1, count], [0, width]], offset=-first_row, channel_multiplier=1,
            on_true_tile=written.expand_dim(1).broadcast(1, count), on_false_value=0.0, cmp_op=nl.equal,
        )  # fmt: skip
        new_sbuf = nl.ndarray(held.shape, dtype=new_hbm.dtype, buffer=nl.sbuf)
        for first in range(0, count, per_bank):
            end = min(first + per_bank, count)
            taken = nl.ndarray((depth, end - first, width), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_matmul(dst=taken, stationary=k_sbuf, moving=own[:, first:end, :], accumulate=False)
            for r in range(first, end):
                row = first_row + r
                nisa.scalar_tensor_tensor(
                    dst=new_sbuf[:, r, :], data=held[:, r, :], op0=nl.multiply, operand0=decay[:, row : row + 1],
                    op1=nl.add, operand1=taken[:, r - first, :],
                )  # fmt: skip
        nisa.dma_copy(dst=new_hbm[first_row : first_row + count].permute((1, 0, 2)), src=new_sbuf)
