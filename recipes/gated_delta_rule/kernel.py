"""The gated delta rule over a prompt, 128 tokens at a time: within a chunk a triangular system, between chunks a state.

With m[i, j] = k_i k_j exp(log decays from j + 1 to i) for j < i, the values that a chunk writes into the state are
beta (1 + m beta)^-1 (v - since k S): the system's columns, not its rows, carry beta, which is then a number for each
partition. The inverse grows from blocks of one to blocks of 128 by products alone. If t inverts the blocks of l of the
unit triangle L, then L t is 1 on the diagonal and 0 elsewhere in those blocks; keep only its diagonal and, negated,
the lower left quarter of each block of twice the size, and t times that inverts the blocks of twice the size. This is
block forward substitution: unlike a power series it does not lose digits where keys are alike.

Pairwise decays are running products by VectorE's scan, not differences of sums. Several heads go through each
instruction of VectorE and ScalarE: a wave.

Legend: B = batch, S = tokens, K = query/key heads, H = value heads, D = head dimension of queries and keys, E = of
values, L = tokens of a chunk, i, j = places in it, w = heads of a wave.
"""

import nki
import nki.isa as nisa
import nki.language as nl

NORM_EPSILON = 1e-6  # of the L2 norms, as in the reference
MAX_KEY_COLUMNS = 4096  # float32 columns of a chunk's keys in each partition: 16 KiB
MAX_STATE_COLUMNS = 16384  # of the resident state: 64 KiB


@nki.jit
def gated_delta_rule(q, k, v, g, beta, initial=None, normalize=False):
    """S = exp(g) S; S = S + k (beta (v - k S)); out = D^-0.5 q S, token by token in each value head.

    Args:
        q, k: [B, S, K, D] @ HBM, float32 or bfloat16. D at most 128, K x D at most 4096.
        v: [B, S, H, E] @ HBM; H a multiple of K: value head h belongs to key head h // (H / K). E at most 512,
            H x E at most 16384.
        g, beta: [B, S, H] @ HBM: logarithms of decay, at most 0; and rates of writing.
        initial: [B, H, D, E] @ HBM, the state before the first token, or None for zeros.
        normalize: whether q and k are divided by their L2 norms first.
    Returns: out [B, S, H, E], dtype of q; and the last S, [B, H, D, E], float32. Both @ HBM.
    Accuracy: float32 throughout, rounded once.
    """
    batch, tokens, key_heads, depth = k.shape
    heads, width = v.shape[2], v.shape[3]
    pmax = nl.tile_size.pmax
    assert heads % key_heads == 0, f"gated_delta_rule: {heads} value heads over {key_heads} key heads"
    assert depth <= pmax, f"gated_delta_rule: key dimension {depth}, at most {pmax}"
    assert width <= nl.tile_size.psum_bank_fmax, f"gated_delta_rule: value dimension {width}, at most 512"
    assert key_heads * depth <= MAX_KEY_COLUMNS, (
        f"gated_delta_rule: {key_heads} keys of {depth}, at most 4096"
    )
    assert heads * width <= MAX_STATE_COLUMNS, f"gated_delta_rule: {heads} values of {width}, at most 16384"
    out = nl.ndarray(v.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    last = nl.ndarray((batch, heads, depth, width), dtype=nl.float32, buffer=nl.shared_hbm)
    constants = make_constants(min(tokens, pmax))
    for row in range(batch):
        state = nl.ndarray((depth, heads, width), dtype=nl.float32, buffer=nl.sbuf)
        if initial == None:  # noqa: E711 (the NKI compiler has no `is`)
            nisa.memset(dst=state, value=0.0)
        else:
            nisa.dma_copy(dst=state, src=initial[row].permute((1, 0, 2)))
        for first in range(0, tokens, pmax):
            span = slice(first, min(first + pmax, tokens))
            run_chunk(
                out[row, span], q[row, span], k[row, span], v[row, span], g[row, span], beta[row, span], state,
                constants, normalize,
            )  # fmt: skip
        nisa.dma_copy(dst=last[row].permute((1, 0, 2)), src=state)
    return out, last


def make_constants(tokens):
    """What all chunks share: triangles for sums over tokens, and the sign patterns of the growing inverse."""
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
    identity = nl.shared_identity_matrix(n=pmax, dtype=nl.float32)
    signs = []
    length = 1
    while length < tokens:
        signs.append(sign_pattern(length, ones, identity))
        length = 2 * length
    epsilon = nl.ndarray((pmax, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=epsilon, value=NORM_EPSILON)
    return {
        "ones": ones, "until": until, "after": after, "identity": identity, "signs": signs, "epsilon": epsilon,
    }  # fmt: skip


def sign_pattern(length, ones, identity):
    """1 on the diagonal, -1 in the lower left quarter of each block of 2 length, 0 elsewhere: [128, 128] @ SBUF."""
    pmax = nl.tile_size.pmax
    blocks = pmax // (2 * length)
    quarter = nl.ndarray((pmax, pmax), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=quarter, value=0.0)
    left = quarter.reshape_dim(1, (blocks, 2 * length))[:, :, 0:length]
    selected = nl.ndarray((pmax, blocks, length), dtype=nl.float32, buffer=nl.sbuf)
    nisa.affine_select(  # rows from 2 length block + length on
        dst=selected, pattern=[[-2 * length, blocks], [0, length]], offset=-length, channel_multiplier=1,
        on_true_tile=ones[:, 0 : blocks * length].reshape_dim(1, (blocks, length)), on_false_value=0.0,
        cmp_op=nl.greater_equal,
    )  # fmt: skip
    nisa.affine_select(  # and before 2 length (block + 1)
        dst=left, pattern=[[2 * length, blocks], [0, length]], offset=2 * length - 1, channel_multiplier=-1,
        on_true_tile=selected, on_false_value=0.0, cmp_op=nl.greater_equal,
    )  # fmt: skip
    signs = nl.ndarray((pmax, pmax), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=signs, data1=identity, data2=quarter, op=nl.subtract)
    return signs


def second_engine():
    """Where products go that VectorE need not do: GpSimdE, except on gen2, where the two exclude each other."""
    if nisa.get_nc_version() == nisa.nc_version.gen2:
        return nisa.engine.vector
    return nisa.engine.gpsimd


def load_float(source):
    """`source` @ HBM in SBUF, as float32; its first axis lies on the partitions."""
    tile = nl.ndarray(source.shape, dtype=source.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=source)
    if tile.dtype == nl.float32:
        return tile
    wide = nl.ndarray(source.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=wide, src=tile, engine=second_engine())
    return wide


def run_chunk(out, q, k, v, g, beta, state, constants, normalize):
    """One chunk: all arguments but the last three are @ HBM and begin with its L tokens."""
    tokens, heads, width = v.shape
    key_heads, depth = k.shape[1], k.shape[2]
    bank = nl.tile_size.psum_bank_fmax
    log_decay, rate = load_float(g), load_float(beta)
    times = {
        "log_decay": log_decay,
        "rate": rate,
        "since": exp_of_sums(constants["until"][0:tokens, 0:tokens], log_decay),
        "until_end": exp_of_sums(constants["after"][0:tokens, 0:tokens], log_decay),
        "whole": exp_of_sums(constants["ones"][0:tokens, :], log_decay),
    }
    q_sbuf, k_sbuf = load_float(q), load_float(k)
    if normalize:
        q_sbuf = divide_by_norm(q_sbuf, constants)
        k_sbuf = divide_by_norm(k_sbuf, constants)
    q_turned = transpose_heads(q_sbuf, depth**-0.5)
    k_turned = transpose_heads(k_sbuf, 1.0)

    wave = max(1, min(bank // tokens, bank // width, heads))
    for first in range(0, heads, wave):
        own = slice(first, min(first + wave, heads))
        keys = []
        for head in range(own.start, own.stop):
            keys.append(head * key_heads // heads)
        decay = decay_between(log_decay[:, own], constants)
        weights = multiply_pairs(k_turned, q_turned, keys, decay)
        system = build_system(k_turned, keys, decay, rate[:, own], constants)
        inverse = invert(system, constants)
        v_sbuf = load_float(v[:, own])
        pass_state(out[:, own], v_sbuf, k_sbuf, k_turned, q_turned, keys, weights, inverse, state, times, own)


def exp_of_sums(which, log_decay):
    """exp(sum of the log decays [L, H] of the tokens k where which[k, m] is 1): [M, H] @ SBUF, float32."""
    sums = nl.ndarray((which.shape[1], log_decay.shape[1]), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=sums, stationary=which, moving=log_decay, accumulate=False)
    result = nl.ndarray(sums.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=result, op=nl.exp, data=sums)
    return result


def divide_by_norm(tile, constants):
    """tile [L, K, D] @ SBUF with each head divided by its L2 norm."""
    tokens, heads, depth = tile.shape
    squares = nl.ndarray(tile.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=squares, data1=tile, data2=tile, op=nl.multiply, engine=second_engine())
    inverse = nl.ndarray((tokens, heads), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=inverse, op=nl.add, data=squares, axis=2)
    nisa.activation(dst=inverse, op=nl.rsqrt, data=inverse, bias=constants["epsilon"][0:tokens])
    nisa.tensor_tensor(
        dst=squares,
        data1=tile,
        data2=inverse.expand_dim(2).broadcast(2, depth),
        op=nl.multiply,
        engine=second_engine(),
    )
    return squares


def transpose_heads(tile, scale):
    """[D, K, L] @ SBUF for tile [L, K, D] @ SBUF, times `scale`; several heads in each PSUM bank."""
    tokens, heads, depth = tile.shape
    turned = nl.ndarray((depth, heads, tokens), dtype=nl.float32, buffer=nl.sbuf)
    per_bank = nl.tile_size.psum_bank_fmax // tokens
    for first in range(0, heads, per_bank):
        end = min(first + per_bank, heads)
        bank = nl.ndarray((depth, end - first, tokens), dtype=nl.float32, buffer=nl.psum)
        for head in range(first, end):
            nisa.nc_transpose(dst=bank[:, head - first, :], data=tile[:, head, :], engine=nisa.engine.tensor)
        nisa.activation(dst=turned[:, first:end, :], op=nl.copy, data=bank, scale=scale)
    return turned


def decay_between(log_decay, constants):
    """exp(sum of log decays from j + 1 to i), 1 for i = j, 0 for i < j: [j, w, i] @ SBUF, for log_decay [L, w]."""
    tokens, heads = log_decay.shape
    identity = constants["identity"][0:tokens, 0:tokens]
    # A head's log decays in a row, in every partition: TensorE repeats a column by a stride-0 stationary.
    rows_psum = nl.ndarray((tokens, heads, tokens), dtype=nl.float32, buffer=nl.psum)
    for h in range(heads):
        repeated = log_decay[:, h : h + 1].broadcast(1, tokens)
        nisa.nc_matmul(dst=rows_psum[:, h, :], stationary=repeated, moving=identity, accumulate=False)
    decay = nl.ndarray((tokens, heads, tokens), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=decay, op=nl.exp, data=rows_psum)
    nisa.memset(dst=decay[:, :, 0:1], value=0.0, engine=second_engine())  # each head's product begins anew
    nisa.tensor_tensor_scan(
        dst=decay,
        data0=decay,
        data1=identity.expand_dim(1).broadcast(1, heads),
        initial=0.0,
        op0=nl.multiply,
        op1=nl.add,
    )
    return decay


def multiply_pairs(k_turned, q_turned, keys, decay):
    """k_j q_i decay[j, h, i]: how much of token j's value token i reads, [j, w, i] @ SBUF."""
    products = nl.ndarray(decay.shape, dtype=nl.float32, buffer=nl.psum)
    for h in range(len(keys)):
        nisa.nc_matmul(
            dst=products[:, h, :],
            stationary=k_turned[:, keys[h], :],
            moving=q_turned[:, keys[h], :],
            accumulate=False,
        )
    weights = nl.ndarray(decay.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=weights, data1=products, data2=decay, op=nl.multiply)
    return weights


def build_system(k_turned, keys, decay, rate, constants):
    """The unit triangle (1 + m beta)^T: beta_j k_j k_i decay[j, h, i] for i > j, 1 for i = j; [j, w, i] @ SBUF."""
    tokens = decay.shape[0]
    products = nl.ndarray(decay.shape, dtype=nl.float32, buffer=nl.psum)
    for h in range(len(keys)):
        nisa.nc_matmul(
            dst=products[:, h, :],
            stationary=k_turned[:, keys[h], :],
            moving=k_turned[:, keys[h], :],
            accumulate=False,
        )
    system = scale_heads(products, rate)
    nisa.tensor_tensor(dst=system, data1=system, data2=decay, op=nl.multiply, engine=second_engine())
    for h in range(len(keys)):
        nisa.affine_select(  # i - j - 1 >= 0
            dst=system[:, h, :], pattern=[[1, tokens]], offset=-1, channel_multiplier=-1,
            on_true_tile=system[:, h, :], on_false_value=0.0, cmp_op=nl.greater_equal,
        )  # fmt: skip
    identity = constants["identity"][0:tokens, 0:tokens].expand_dim(1).broadcast(1, len(keys))
    nisa.tensor_tensor(dst=system, data1=system, data2=identity, op=nl.add)
    return system


def scale_heads(tile, factor):
    """tile [L, w, F], @ SBUF or PSUM, times factor [L, w]: @ SBUF, float32; by ScalarE."""
    scaled = nl.ndarray(tile.shape, dtype=nl.float32, buffer=nl.sbuf)
    for h in range(tile.shape[1]):
        nisa.activation(dst=scaled[:, h, :], op=nl.copy, data=tile[:, h, :], scale=factor[:, h : h + 1])
    return scaled


def invert(system, constants):
    """The transposed inverses of the triangles whose transposes `system` [j, w, i] holds: [j, w, i] @ SBUF."""
    tokens, heads, _ = system.shape
    identity = constants["identity"][0:tokens, 0:tokens].expand_dim(1).broadcast(1, heads)
    inverse, turned = identity, identity  # blocks of one
    length = 1
    for signs in constants["signs"]:
        if length < tokens:
            pattern = signs[0:tokens, 0:tokens].expand_dim(1).broadcast(1, heads)
            step = nl.ndarray(system.shape, dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_tensor(dst=step, data1=multiply(system, inverse), data2=pattern, op=nl.multiply)
            grown = multiply(step, turned)
            if length == 1:
                inverse = step
            elif 2 * length < tokens:  # the last one is needed transposed only
                inverse = copied(multiply(turned, step))
            turned = copied(grown)
        length = 2 * length
    return turned


def multiply(left_turned, right):
    """left times right for each head, [L, w, F] @ PSUM; left is given transposed, both [L, w, ..] @ SBUF."""
    _, heads, width = right.shape
    product = nl.ndarray((left_turned.shape[2], heads, width), dtype=nl.float32, buffer=nl.psum)
    for h in range(heads):
        nisa.nc_matmul(
            dst=product[:, h, :], stationary=left_turned[:, h, :], moving=right[:, h, :], accumulate=False
        )
    return product


def copied(product):
    """`product` @ PSUM in SBUF, by ScalarE."""
    tile = nl.ndarray(product.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=tile, op=nl.copy, data=product)
    return tile


def pass_state(out, v_sbuf, k_sbuf, k_turned, q_turned, keys, weights, inverse, state, times, own):
    """Read the state for the wave's tokens, write out [L, w, E] @ HBM, and take the tokens into the state."""
    _, heads, width = v_sbuf.shape
    depth = state.shape[0]
    known = nl.ndarray(v_sbuf.shape, dtype=nl.float32, buffer=nl.psum)
    read = nl.ndarray(v_sbuf.shape, dtype=nl.float32, buffer=nl.psum)
    for h in range(heads):
        held = state[:, own.start + h, :]
        nisa.nc_matmul(dst=known[:, h, :], stationary=k_turned[:, keys[h], :], moving=held, accumulate=False)
        nisa.nc_matmul(dst=read[:, h, :], stationary=q_turned[:, keys[h], :], moving=held, accumulate=False)
    missing = scale_heads(known, times["since"][:, own])
    nisa.tensor_tensor(dst=missing, data1=v_sbuf, data2=missing, op=nl.subtract, engine=second_engine())
    written = scale_heads(multiply(inverse, missing), times["rate"][:, own])

    across = scale_heads(read, times["since"][:, own])
    out_sbuf = nl.ndarray(v_sbuf.shape, dtype=out.dtype, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=out_sbuf, data1=across, data2=multiply(weights, written), op=nl.add)
    nisa.dma_copy(dst=out, src=out_sbuf)

    lasting = nl.ndarray(v_sbuf.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=lasting,
        data1=written,
        data2=times["until_end"][:, own].expand_dim(2).broadcast(2, width),
        op=nl.multiply,
        engine=second_engine(),
    )
    taken = nl.ndarray((depth, heads, width), dtype=nl.float32, buffer=nl.psum)
    for h in range(heads):
        nisa.nc_matmul(
            dst=taken[:, h, :], stationary=k_sbuf[:, keys[h], :], moving=lasting[:, h, :], accumulate=False
        )
    kept = scale_heads(state[:, own], times["whole"][0:depth, own])
    nisa.tensor_tensor(dst=state[:, own], data1=kept, data2=taken, op=nl.add)
