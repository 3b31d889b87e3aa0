"""State-space duality (Mamba-2) over a prompt: within a chunk of 128 tokens as masked attention, between chunks by state.

Every pairwise decay exp(sum of log decays from j + 1 to i) is a running product, never a difference of running sums:
VectorE's scan multiplies along i in every partition j at once, starting from the 1 that the identity puts at i = j.
That is exact where differences of large sums lose all digits, and needs no mask: before j the product is zero.

Legend: B = batch, S = tokens, H = heads, D = head dimension, G = groups of heads that share b and c, N = states,
L = tokens of a chunk, i, j = places in it, columns = the heads of a block side by side, heads x D.
"""

import nki
import nki.isa as nisa
import nki.language as nl

MAX_STATE_COLUMNS = 16384  # float32 columns of resident state in each partition: 64 KiB


@nki.jit
def ssd(x, dt, a, b, c, d=None, dt_bias=None, initial=None, softplus=False, dt_low=0.0, dt_high=3e38):
    """h_s = exp(step_s a) h_(s-1) + step_s b_s x_s and y_s = c_s h_s + d x_s, for every head and head dimension.

    Args:
        x: [B, S, H, D] @ HBM, float32 or bfloat16. D at most 512.
        dt: [B, S, H] @ HBM; step = softplus(dt + dt_bias) kept between dt_low and dt_high. H at most 512.
        a: [H] @ HBM, negative rates of decay.
        b, c: [B, S, G, N] @ HBM, H a multiple of G. H x D x ceil(N / 128) at most 16384.
        d, dt_bias: [H] @ HBM, or None.
        initial: [B, H, D, N] @ HBM, the state before the first token, or None for zeros.
        softplus: whether softplus is applied.
    Returns: y [B, S, H, D] and the last h [B, H, D, N], both @ HBM, float32.
    Accuracy: float32 throughout.
    """
    batch, tokens, heads, head_dim = x.shape
    groups, states = b.shape[2], b.shape[3]
    pmax = nl.tile_size.pmax
    state_tiles = (states + pmax - 1) // pmax
    assert heads % groups == 0, f"ssd: {heads} heads in {groups} groups"
    assert head_dim <= nl.tile_size.psum_bank_fmax, f"ssd: head dimension {head_dim}, at most 512"
    assert heads <= nl.tile_size.psum_bank_fmax, f"ssd: {heads} heads, at most 512"
    assert heads * head_dim * state_tiles <= MAX_STATE_COLUMNS, (
        f"ssd: {heads} heads of {head_dim} with {states} states, at most {MAX_STATE_COLUMNS} columns of state"
    )
    out = nl.ndarray(x.shape, dtype=nl.float32, buffer=nl.shared_hbm)
    last = nl.ndarray((batch, heads, head_dim, states), dtype=nl.float32, buffer=nl.shared_hbm)
    constants = make_constants(a, d, dt_bias)
    for row in range(batch):
        state = start(initial[row] if initial != None else None, heads, head_dim, states, constants)  # noqa: E711
        for first in range(0, tokens, pmax):
            span = slice(first, min(first + pmax, tokens))
            steps = load_steps(dt[row, span], constants, softplus, dt_low, dt_high)
            for group in range(groups):
                run_group(
                    out[row, span], x[row, span], b[row, span, group], c[row, span, group], state, steps, constants,
                    group * heads // groups, heads // groups,
                )  # fmt: skip
        finish(last[row], state, constants)
    return out, last


def make_constants(a, d, dt_bias):
    """What all chunks share: triangles for sums over tokens, and the heads' own numbers in every partition."""
    pmax = nl.tile_size.pmax
    ones = nl.ndarray((pmax, pmax), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    until = nl.ndarray((pmax, pmax), dtype=nl.float32, buffer=nl.sbuf)  # 1 where partition <= column
    nisa.affine_select(
        dst=until, pattern=[[1, pmax]], offset=0, channel_multiplier=-1, on_true_tile=ones, on_false_value=0.0,
        cmp_op=nl.greater_equal,
    )  # fmt: skip
    after = nl.ndarray((pmax, pmax), dtype=nl.float32, buffer=nl.sbuf)  # 1 where partition > column
    nisa.tensor_tensor(dst=after, data1=ones, data2=until, op=nl.subtract)
    return {
        "ones": ones,
        "until": until,
        "after": after,
        "identity": nl.shared_identity_matrix(n=pmax, dtype=nl.float32),
        "a": spread(a),
        "d": spread(d),
        "dt_bias": spread(dt_bias),
    }


def spread(source):
    """source [H] @ HBM in every partition: [128, H] @ SBUF, float32; None for None."""
    if source == None:  # noqa: E711 (the NKI compiler has no `is`)
        return None
    tile = nl.ndarray((nl.tile_size.pmax, source.shape[0]), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=source.expand_dim(0).broadcast(0, nl.tile_size.pmax))
    return tile


def second_engine():
    """Where products go that VectorE need not do: GpSimdE, except on gen2, where the two exclude each other."""
    if nisa.get_nc_version() == nisa.nc_version.gen2:
        return nisa.engine.vector
    return nisa.engine.gpsimd


def load(source):
    """`source` @ HBM in SBUF, in its own dtype; its first axis lies on the partitions."""
    tile = nl.ndarray(source.shape, dtype=source.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=source)
    return tile


def load_float(source):
    """`source` @ HBM in SBUF, as float32: TensorE multiplies only equals."""
    tile = load(source)
    if tile.dtype == nl.float32:
        return tile
    wide = nl.ndarray(source.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=wide, src=tile, engine=second_engine())
    return wide


def transpose(tile, constants):
    """[f, p] @ SBUF for a float32 tile [p, f] @ SBUF, f at most 128."""
    partitions, columns = tile.shape
    turned_psum = nl.ndarray((columns, partitions), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_transpose(dst=turned_psum, data=tile, engine=nisa.engine.tensor)
    turned = nl.ndarray((columns, partitions), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=turned, op=nl.copy, data=turned_psum)
    return turned


def start(initial, heads, head_dim, states, constants):
    """The state before the first token, a list of [up to 128 of N, H x D] @ SBUF, float32."""
    pmax = nl.tile_size.pmax
    columns = heads * head_dim
    state = []
    for first in range(0, states, pmax):
        end = min(first + pmax, states)
        tile = nl.ndarray((end - first, columns), dtype=nl.float32, buffer=nl.sbuf)
        if initial == None:  # noqa: E711
            nisa.memset(dst=tile, value=0.0)
        else:
            rows = initial.reshape((columns, states))
            for column in range(0, columns, pmax):
                span = slice(column, min(column + pmax, columns))
                part = load_float(rows[span, first:end])
                nisa.tensor_copy(dst=tile[:, span], src=transpose(part, constants), engine=nisa.engine.vector)
        state.append(tile)
    return state


def finish(last, state, constants):
    """Write the state to last [H, D, N] @ HBM."""
    pmax = nl.tile_size.pmax
    heads, head_dim, states = last.shape
    columns = heads * head_dim
    rows = last.reshape((columns, states))
    for index in range(len(state)):
        first = index * pmax
        for column in range(0, columns, pmax):
            span = slice(column, min(column + pmax, columns))
            part = transpose(state[index][:, span], constants)
            nisa.dma_copy(dst=rows[span, first : first + state[index].shape[0]], src=part)


def load_steps(dt_hbm, constants, softplus, dt_low, dt_high):
    """What the chunk's tokens and heads need of time, each [L, H] @ SBUF, float32.

    step; log_decay = step a; since = exp(sum of log decays up to and with the token); until_end = exp(of those after
    it); whole [128, H] = exp(of all), in every partition.
    """
    tokens, heads = dt_hbm.shape
    step = nl.ndarray((tokens, heads), dtype=nl.float32, buffer=nl.sbuf)
    dt_sbuf = load(dt_hbm)
    if constants["dt_bias"] != None:  # noqa: E711
        nisa.tensor_tensor(dst=step, data1=dt_sbuf, data2=constants["dt_bias"][0:tokens], op=nl.add)
    else:
        nisa.tensor_copy(dst=step, src=dt_sbuf, engine=nisa.engine.vector)
    if softplus:
        nisa.activation(dst=step, op=nl.softplus, data=step)
    nisa.tensor_scalar(dst=step, data=step, op0=nl.maximum, operand0=dt_low, op1=nl.minimum, operand1=dt_high)
    log_decay = nl.ndarray((tokens, heads), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=log_decay, data1=step, data2=constants["a"][0:tokens], op=nl.multiply)
    return {
        "step": step,
        "log_decay": log_decay,
        "since": exp_of_sums(constants["until"][0:tokens, 0:tokens], log_decay),
        "until_end": exp_of_sums(constants["after"][0:tokens, 0:tokens], log_decay),
        "whole": exp_of_sums(constants["ones"][0:tokens, :], log_decay),
    }


def exp_of_sums(which, log_decay):
    """exp(sum of the log decays [L, H] of the tokens k where which[k, m] is 1): [M, H] @ SBUF, float32."""
    sums = nl.ndarray((which.shape[1], log_decay.shape[1]), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=sums, stationary=which, moving=log_decay, accumulate=False)
    result = nl.ndarray(sums.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=result, op=nl.exp, data=sums)
    return result


def run_group(out, x, b, c, state, steps, constants, first_head, heads):
    """One chunk of the heads that share b and c [L, N] @ HBM; out and x are [L, H, D] @ HBM."""
    tokens, states = b.shape
    head_dim = x.shape[2]
    pmax = nl.tile_size.pmax
    b_sbuf, c_sbuf = load_float(b), load_float(c)
    b_turned, c_turned = [], []
    for first in range(0, states, pmax):
        part = slice(first, min(first + pmax, states))
        b_turned.append(transpose(b_sbuf[:, part], constants))
        c_turned.append(transpose(c_sbuf[:, part], constants))
    scores = nl.ndarray((tokens, tokens), dtype=nl.float32, buffer=nl.psum)  # b_j c_i at [j, i]
    for index in range(len(state)):
        nisa.nc_matmul(dst=scores, stationary=b_turned[index], moving=c_turned[index], accumulate=index > 0)

    block = max(1, min(nl.tile_size.psum_bank_fmax // head_dim, heads))
    for start_head in range(first_head, first_head + heads, block):
        own = slice(start_head, min(start_head + block, first_head + heads))
        weights = weigh_pairs(scores, steps["log_decay"][:, own], constants)
        x_sbuf = load(x[:, own])
        stepped = multiply_heads(x_sbuf, steps["step"][:, own])
        read = read_state(state, c_turned, own, head_dim, tokens)
        y_sbuf = scale_heads(read, steps["since"][:, own])
        add_within(y_sbuf, weights, stepped)
        if constants["d"] != None:  # noqa: E711
            skip = relieve_vector(x_sbuf, constants["d"][0:tokens, own])
            nisa.tensor_tensor(dst=y_sbuf, data1=y_sbuf, data2=skip, op=nl.add, engine=second_engine())
        nisa.dma_copy(dst=out[:, own], src=y_sbuf)
        decayed = relieve_vector(stepped, steps["until_end"][:, own])
        update_state(state, b_sbuf, decayed, steps["whole"][:, own], own)


def multiply_heads(tile, factor):
    """tile [L, h, D] times factor [L, h] of each token and head: @ SBUF, float32."""
    product = nl.ndarray(tile.shape, dtype=nl.float32, buffer=nl.sbuf)
    wide = factor.expand_dim(2).broadcast(2, tile.shape[2])
    nisa.tensor_tensor(dst=product, data1=tile, data2=wide, op=nl.multiply, engine=second_engine())
    return product


def scale_heads(tile, factor):
    """The same by ScalarE, head by head: its scale is one number for each partition. tile may be @ PSUM."""
    scaled = nl.ndarray(tile.shape, dtype=nl.float32, buffer=nl.sbuf)
    for h in range(tile.shape[1]):
        nisa.activation(dst=scaled[:, h, :], op=nl.copy, data=tile[:, h, :], scale=factor[:, h : h + 1])
    return scaled


def relieve_vector(tile, factor):
    """The same on whichever engine shares the work with VectorE best: GpSimdE, on gen2 ScalarE."""
    if nisa.get_nc_version() == nisa.nc_version.gen2:
        return scale_heads(tile, factor)
    return multiply_heads(tile, factor)


def weigh_pairs(scores, log_decay, constants):
    """scores[j, i] exp(sum of log decays from j + 1 to i), 0 for i < j: [j, h, i] @ SBUF, for log_decay [L, h]."""
    tokens, heads = log_decay.shape
    wave = nl.tile_size.psum_bank_fmax // tokens
    identity = constants["identity"][0:tokens, 0:tokens]
    weights = nl.ndarray((tokens, heads, tokens), dtype=nl.float32, buffer=nl.sbuf)
    for first in range(0, heads, wave):
        count = min(wave, heads - first)
        # A head's log decays in a row, in every partition: TensorE repeats a column by a stride-0 stationary.
        rows_psum = nl.ndarray((tokens, count, tokens), dtype=nl.float32, buffer=nl.psum)
        for h in range(count):
            repeated = log_decay[:, first + h : first + h + 1].broadcast(1, tokens)
            nisa.nc_matmul(dst=rows_psum[:, h, :], stationary=repeated, moving=identity, accumulate=False)
        decay = nl.ndarray((tokens, count, tokens), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=decay, op=nl.exp, data=rows_psum)
        nisa.memset(
            dst=decay[:, :, 0:1], value=0.0, engine=second_engine()
        )  # each head's product begins anew
        nisa.tensor_tensor_scan(
            dst=decay,
            data0=decay,
            data1=identity.expand_dim(1).broadcast(1, count),
            initial=0.0,
            op0=nl.multiply,
            op1=nl.add,
        )
        nisa.tensor_tensor(
            dst=weights[:, first : first + count, :],
            data1=decay,
            data2=scores.expand_dim(1).broadcast(1, count),
            op=nl.multiply,
        )
    return weights


def read_state(state, c_turned, own, head_dim, tokens):
    """c times the state before the chunk, [L, h, D] @ PSUM."""
    heads = own.stop - own.start
    read = nl.ndarray((tokens, heads, head_dim), dtype=nl.float32, buffer=nl.psum)
    columns = slice(own.start * head_dim, own.stop * head_dim)
    for index in range(len(state)):
        nisa.nc_matmul(
            dst=read, stationary=c_turned[index], moving=state[index][:, columns], accumulate=index > 0
        )
    return read


def add_within(y_sbuf, weights, stepped):
    """Add what the chunk's own tokens give: weights[j, h, i] times stepped x [j, h, D], summed over j."""
    tokens, heads, head_dim = stepped.shape
    within = nl.ndarray((tokens, heads, head_dim), dtype=nl.float32, buffer=nl.psum)
    for h in range(heads):
        nisa.nc_matmul(
            dst=within[:, h, :], stationary=weights[:, h, :], moving=stepped[:, h, :], accumulate=False
        )
    nisa.tensor_tensor(dst=y_sbuf, data1=y_sbuf, data2=within, op=nl.add)


def update_state(state, b_sbuf, decayed, whole, own):
    """state = whole state + sum_j b_j decayed_j, for the columns of the block's heads."""
    _, heads, head_dim = decayed.shape
    pmax = nl.tile_size.pmax
    columns = slice(own.start * head_dim, own.stop * head_dim)
    for index in range(len(state)):
        count = state[index].shape[0]
        taken = nl.ndarray((count, heads, head_dim), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(
            dst=taken,
            stationary=b_sbuf[:, index * pmax : index * pmax + count],
            moving=decayed,
            accumulate=False,
        )
        part = state[index][:, columns].reshape_dim(1, (heads, head_dim))
        kept = scale_heads(part, whole[0:count])
        nisa.tensor_tensor(dst=part, data1=kept, data2=taken, op=nl.add)
