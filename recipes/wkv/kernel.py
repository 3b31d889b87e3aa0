"""RWKV's time mixing: an exponentially decaying weighted mean per channel, by three scans along time.

Channels lie on the partitions and time along the free axis. VectorE's scan takes any two operations: one with add and
maximum gives the running largest exponent, two with multiply and add the numerator and denominator relative to it, so
that no exponential ever overflows. A single token from a state (decoding) has no time to lie along: all channels of
all rows then lie side by side, and every operation is one instruction.

Legend: B = batch, S = tokens, C = channels, P = channels of a tile, L = tokens of a block.
"""

import nki
import nki.isa as nisa
import nki.language as nl

BLOCK_TOKENS = 512  # of a block: one PSUM bank of float32
STEP_ELEMENTS = 2048  # of the tiles of a single token, per partition: 8 KiB each
BEFORE_ALL = -1e38  # exponent of a state that holds nothing


@nki.jit
def wkv(key, value, decay, first, numerator=None, denominator=None, maximum=None):
    """The mean of all values so far, weighted by exp(key + age times -exp(decay)), the newest by exp(key + first).

    Args:
        key, value: [B, S, C] @ HBM, float32 or bfloat16.
        decay, first: [C] @ HBM.
        numerator, denominator, maximum: [B, C] @ HBM, float32, what came before: sums relative to exp(maximum); all
            three None where nothing did.
    Returns: out [B, S, C], dtype of key; and the three after the last token, [B, C] float32. All @ HBM.
    Accuracy: float32 throughout, rounded once.
    """
    batch, tokens, channels = key.shape
    pmax = nl.tile_size.pmax
    out = nl.ndarray(key.shape, dtype=key.dtype, buffer=nl.shared_hbm)
    last_numerator = nl.ndarray((batch, channels), dtype=nl.float32, buffer=nl.shared_hbm)
    last_denominator = nl.ndarray((batch, channels), dtype=nl.float32, buffer=nl.shared_hbm)
    last_maximum = nl.ndarray((batch, channels), dtype=nl.float32, buffer=nl.shared_hbm)
    if tokens == 1 and numerator != None:  # noqa: E711 (the NKI compiler has no `is`)
        given = {"numerator": numerator, "denominator": denominator, "maximum": maximum}
        after = {"numerator": last_numerator, "denominator": last_denominator, "maximum": last_maximum}
        run_step(out[:, 0], key[:, 0], value[:, 0], decay, first, given, after)
        return out, last_numerator, last_denominator, last_maximum
    for start in range(0, channels, pmax):
        own = slice(start, min(start + pmax, channels))
        rate = load_column(decay[own])
        nisa.activation(dst=rate, op=nl.exp, data=rate)
        nisa.tensor_scalar(dst=rate, data=rate, op0=nl.multiply, operand0=-1.0)
        bonus = load_column(first[own])
        for row in range(batch):
            state = {
                "numerator": start_from(numerator, row, own, 0.0),
                "denominator": start_from(denominator, row, own, 0.0),
                "maximum": start_from(maximum, row, own, BEFORE_ALL),
            }
            for token in range(0, tokens, BLOCK_TOKENS):
                span = slice(token, min(token + BLOCK_TOKENS, tokens))
                k_sbuf, v_sbuf = load_turned(key[row, span, own]), load_turned(value[row, span, own])
                mean, state = run_block(k_sbuf, v_sbuf, rate, bonus, state)
                store_turned(out[row, span, own], mean)
            nisa.dma_copy(dst=last_numerator[row, own].expand_dim(1), src=state["numerator"])
            nisa.dma_copy(dst=last_denominator[row, own].expand_dim(1), src=state["denominator"])
            nisa.dma_copy(dst=last_maximum[row, own].expand_dim(1), src=state["maximum"])
    return out, last_numerator, last_denominator, last_maximum


def load_column(source):
    """A float32 column [P, 1] @ SBUF of source [P] @ HBM."""
    tile = nl.ndarray((source.shape[0], 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=source.expand_dim(1))
    return tile


def start_from(source, row, own, default):
    """Channels `own` of row `row` of source [B, C] @ HBM as a column; `default` in each where source is None."""
    if source != None:  # noqa: E711 (the NKI compiler has no `is`)
        return load_column(source[row, own])
    tile = nl.ndarray((own.stop - own.start, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=tile, value=default)
    return tile


def load_turned(source):
    """source [L, P] @ HBM with channels on the partitions: [P, L] @ SBUF, float32."""
    tokens, channels = source.shape
    pmax = nl.tile_size.pmax
    turned = nl.ndarray((channels, tokens), dtype=nl.float32, buffer=nl.sbuf)
    bank = nl.ndarray((channels, tokens), dtype=source.dtype, buffer=nl.psum)
    for first in range(0, tokens, pmax):
        span = slice(first, min(first + pmax, tokens))
        rows = nl.ndarray((span.stop - span.start, channels), dtype=source.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=rows, src=source[span])
        nisa.nc_transpose(dst=bank[:, span], data=rows, engine=nisa.engine.tensor)
    nisa.activation(dst=turned, op=nl.copy, data=bank)
    return turned


def store_turned(target, tile):
    """Write tile [P, L] @ SBUF to target [L, P] @ HBM."""
    channels, tokens = tile.shape
    pmax = nl.tile_size.pmax
    for first in range(0, tokens, pmax):
        span = slice(first, min(first + pmax, tokens))
        bank = nl.ndarray((span.stop - span.start, channels), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_transpose(dst=bank, data=tile[:, span], engine=nisa.engine.tensor)
        rows = nl.ndarray(bank.shape, dtype=target.dtype, buffer=nl.sbuf)
        nisa.activation(dst=rows, op=nl.copy, data=bank)
        nisa.dma_copy(dst=target[span], src=rows)


def run_step(out, key, value, decay, first, given, after):
    """One token of each row: out, key and value are [B, C] @ HBM, `given` and `after` the state's tensors by name."""
    batch, channels = key.shape
    partitions = 1
    for divisor in range(2, min(channels, nl.tile_size.pmax) + 1):
        if channels % divisor == 0:
            partitions = divisor
    depth = channels // partitions
    assert depth <= STEP_ELEMENTS, (
        f"wkv: {channels} channels on {partitions} partitions, at most 2048 on each"
    )
    rate = load_rows(decay.expand_dim(0), partitions)
    nisa.activation(dst=rate, op=nl.exp, data=rate)
    nisa.tensor_scalar(dst=rate, data=rate, op0=nl.multiply, operand0=-1.0)
    bonus = load_rows(first.expand_dim(0), partitions)
    rows = max(1, STEP_ELEMENTS // depth)
    for start in range(0, batch, rows):
        span = slice(start, min(start + rows, batch))
        count = span.stop - span.start
        k_sbuf, v_sbuf = load_rows(key[span], partitions), load_rows(value[span], partitions)
        found = {}
        for name in ("numerator", "denominator", "maximum"):
            found[name] = load_rows(given[name][span], partitions)
        seen = mix(found, combine(k_sbuf, bonus.broadcast(1, count), nl.add), v_sbuf)
        nisa.reciprocal(dst=seen["denominator"], data=seen["denominator"])
        store_rows(out[span], combine(seen["numerator"], seen["denominator"], nl.multiply))
        found["maximum"] = combine(found["maximum"], rate.broadcast(1, count), nl.add)
        left = mix(found, k_sbuf, v_sbuf)
        for name in ("numerator", "denominator", "maximum"):
            store_rows(after[name][span], left[name])


def mix(found, exponent, v_sbuf):
    """The sums `found`, with a value of weight exp(exponent) added: by name, relative to the larger exponent."""
    largest = combine(found["maximum"], exponent, nl.maximum)
    old = exp_of(combine(found["maximum"], largest, nl.subtract))
    new = exp_of(combine(exponent, largest, nl.subtract))
    numerator = combine(
        combine(old, found["numerator"], nl.multiply), combine(new, v_sbuf, nl.multiply), nl.add
    )
    denominator = combine(combine(old, found["denominator"], nl.multiply), new, nl.add)
    return {"numerator": numerator, "denominator": denominator, "maximum": largest}


def combine(left, right, op):
    """op of two tiles of one shape, @ SBUF, float32."""
    tile = nl.ndarray(left.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=tile, data1=left, data2=right, op=op)
    return tile


def load_rows(source, partitions):
    """source [b, C] @ HBM with channels on the partitions, C / P in each: [P, b, C / P] @ SBUF, float32."""
    rows, channels = source.shape
    tile = nl.ndarray((partitions, rows, channels // partitions), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=source.reshape((rows, partitions, channels // partitions)).permute((1, 0, 2)))
    return tile


def store_rows(target, tile):
    """Write tile [P, b, C / P] @ SBUF to target [b, C] @ HBM."""
    partitions, rows, depth = tile.shape
    nisa.dma_copy(dst=target.reshape((rows, partitions, depth)).permute((1, 0, 2)), src=tile)


def second_engine():
    """Where products go that VectorE need not do: GpSimdE, except on gen2, where the two exclude each other."""
    if nisa.get_nc_version() == nisa.nc_version.gen2:
        return nisa.engine.vector
    return nisa.engine.gpsimd


def run_block(k_sbuf, v_sbuf, rate, bonus, state):
    """The means of one block, [P, L] @ SBUF, and the state after it, columns [P, 1] by name.

    A history has one column more than the block has tokens: what was before it. So `history[:, 0 : L]` is what each
    token finds, and `history[:, 1 : L + 1]` what it leaves.
    """
    channels, tokens = k_sbuf.shape
    history = {}
    for name in ("numerator", "denominator", "maximum"):
        tile = nl.ndarray((channels, tokens + 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=tile[:, 0:1], src=state[name], engine=nisa.engine.vector)
        history[name] = tile
    found = history["maximum"][:, 0:tokens]
    left = history["maximum"][:, 1 : tokens + 1]
    nisa.tensor_tensor_scan(
        dst=left,
        data0=rate.broadcast(1, tokens),
        data1=k_sbuf,
        initial=state["maximum"],
        op0=nl.add,
        op1=nl.maximum,
    )
    kept = exp_of(shifted_difference(found, rate, left))
    taken = difference(k_sbuf, left, second_engine())
    taken = exp_of(taken)
    weighted = product(taken, v_sbuf, second_engine())
    accumulate(history["numerator"], kept, weighted, state["numerator"])
    accumulate(history["denominator"], kept, taken, state["denominator"])

    largest = nl.ndarray(
        k_sbuf.shape, dtype=nl.float32, buffer=nl.sbuf
    )  # exponent that the output is relative to
    nisa.scalar_tensor_tensor(
        dst=largest, data=k_sbuf, op0=nl.add, operand0=bonus, op1=nl.maximum, operand1=found
    )
    old = exp_of(difference(found, largest, second_engine()))
    new = exp_of(shifted_difference(k_sbuf, bonus, largest))
    top = product(old, history["numerator"][:, 0:tokens], second_engine())
    nisa.tensor_tensor(dst=top, data1=top, data2=product(new, v_sbuf, second_engine()), op=nl.add)
    bottom = product(old, history["denominator"][:, 0:tokens], nisa.engine.vector)
    nisa.tensor_tensor(dst=bottom, data1=bottom, data2=new, op=nl.add)
    nisa.reciprocal(dst=bottom, data=bottom)
    mean = product(top, bottom, nisa.engine.vector)
    after = {}
    for name in ("numerator", "denominator", "maximum"):
        column = nl.ndarray((channels, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=column, src=history[name][:, tokens : tokens + 1], engine=nisa.engine.vector)
        after[name] = column
    return mean, after


def accumulate(history, kept, added, before):
    """history[:, t + 1] = kept[:, t] history[:, t] + added[:, t], from the column `before`."""
    tokens = kept.shape[1]
    nisa.tensor_tensor_scan(
        dst=history[:, 1 : tokens + 1], data0=kept, data1=added, initial=before, op0=nl.multiply, op1=nl.add
    )


def product(left, right, engine):
    """left times right, [P, L] @ SBUF."""
    tile = nl.ndarray(left.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=tile, data1=left, data2=right, op=nl.multiply, engine=engine)
    return tile


def difference(left, right, engine):
    """left - right, [P, L] @ SBUF."""
    tile = nl.ndarray(left.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=tile, data1=left, data2=right, op=nl.subtract, engine=engine)
    return tile


def shifted_difference(left, shift, right):
    """left + shift - right for a column `shift`, [P, L] @ SBUF."""
    tile = nl.ndarray(left.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=tile, data=left, op0=nl.add, operand0=shift, op1=nl.subtract, operand1=right
    )
    return tile


def exp_of(tile):
    """exp of `tile`, in its place."""
    nisa.activation(dst=tile, op=nl.exp, data=tile)
    return tile
