"""One step of a selective state space (Mamba, Mamba-2): every channel's states decay, take the token in, are read.

The state is read and written once; everything else is small. Channels lie on the partitions, several one after the
other in each, so that a partition's part of the state is one contiguous run in HBM.

Legend: B = batch, R = channels (heads x head dimension), N = states per channel, G = groups of channels that share b
and c, P = partitions, T = channels of a partition: channel r is number r % T of partition r // T.
"""

import nki
import nki.isa as nisa
import nki.language as nl

BLOCK_ELEMENTS = 1024  # of states per partition and tile: while one is computed, others load and store
MAX_STATES = 4096  # float32 tiles of 16 KiB
GROUP_ROWS = 8  # batch rows that share one read of the rates
LONG_ROW = 64  # from so many states on, an instruction for each channel costs less than a product for all


@nki.jit
def selective_state_update(state, x, dt, a, b, c, d=None, z=None, dt_bias=None, softplus=False):
    """new = exp(dt a) state + dt b x for each channel; y = sum_n c[n] new[n].

    Args:
        state: [B, R, N] @ HBM, float32 or bfloat16.
        x: [B, R] @ HBM, float32 or bfloat16.
        dt: [B, R] @ HBM, time steps, before bias and softplus.
        a: [R, N] @ HBM, negative rates of decay.
        b, c: [B, G, N] @ HBM; R a multiple of G, G at most 128. Channels r of group r // (R / G) share them.
        d: [R] @ HBM or None: adds d x to y.
        z: [B, R] @ HBM or None: multiplies y by silu(z).
        dt_bias: [R] @ HBM or None, added to dt.
        softplus: whether the time steps are softplus(dt + dt_bias).
    Returns: y [B, R], dtype of x; and the new state [B, R, N], dtype of state. Both @ HBM.
    Accuracy: float32 throughout, each result rounded once.
    """
    batch, channels, states = state.shape
    groups = b.shape[1]
    pmax = nl.tile_size.pmax
    assert groups <= pmax, f"selective_state_update: {groups} groups, at most {pmax}"
    assert channels % groups == 0, f"selective_state_update: {channels} channels in {groups} groups"
    assert states <= MAX_STATES, f"selective_state_update: {states} states, at most {MAX_STATES}"
    out = nl.ndarray((batch, channels), dtype=x.dtype, buffer=nl.shared_hbm)
    new = nl.ndarray(state.shape, dtype=state.dtype, buffer=nl.shared_hbm)

    partitions = groups * largest_divisor(channels // groups, pmax // groups)
    depth = channels // partitions
    block = max(1, min(BLOCK_ELEMENTS // states, depth))
    bias_sbuf = load_channels(dt_bias, partitions)
    d_sbuf = load_channels(d, partitions)
    for first_row in range(0, batch, GROUP_ROWS):
        end_row = min(first_row + GROUP_ROWS, batch)
        tokens = []
        for row in range(first_row, end_row):
            tokens.append(load_token(x[row], dt[row], b[row], c[row], bias_sbuf, softplus, partitions))
        for first in range(0, depth, block):
            part = slice(first, min(first + block, depth))
            a_sbuf = load(a.reshape((partitions, depth, states))[:, part])
            for row in range(first_row, end_row):
                token = tokens[row - first_row]
                old = load(state[row].reshape((partitions, depth, states))[:, part])
                new_sbuf = advance(old, token["taken"][:, part], token["step"][:, part], a_sbuf, token["b"])
                store(new[row].reshape((partitions, depth, states))[:, part], new_sbuf)
                read_out(token["y"][:, part], new_sbuf, token["c"])
        for row in range(first_row, end_row):
            token = tokens[row - first_row]
            finish(token["y"], token["x"], d_sbuf, load_channels(z[row] if z != None else None, partitions))  # noqa: E711
            store(out[row].reshape((partitions, depth)), token["y"])
    return out, new


def largest_divisor(number, limit):
    """The largest divisor of `number` that is at most `limit`."""
    best = 1
    for divisor in range(2, min(number, limit) + 1):
        if number % divisor == 0:
            best = divisor
    return best


def second_engine():
    """Where large products go: GpSimdE beside VectorE, except on gen2, where the two exclude each other from SBUF."""
    if nisa.get_nc_version() == nisa.nc_version.gen2:
        return nisa.engine.vector
    return nisa.engine.gpsimd


def load(source):
    """`source` @ HBM in SBUF, in its own dtype; its first axis lies on the partitions."""
    tile = nl.ndarray(source.shape, dtype=source.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=source)
    return tile


def load_channels(source, partitions):
    """source [R] @ HBM with its channels on the partitions, [P, R / P] @ SBUF; None for None."""
    if source == None:  # noqa: E711 (the NKI compiler has no `is`)
        return None
    return load(source.reshape((partitions, source.shape[0] // partitions)))


def load_token(x, dt, b, c, bias_sbuf, softplus, partitions):
    """What a batch row's token brings: x, its step, step x, and its y to be, [P, R / P] each; b and c, [P, N]."""
    x_sbuf = load_channels(x, partitions)
    step = load_steps(load_channels(dt, partitions), bias_sbuf, softplus)
    taken = nl.ndarray(step.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=taken, data1=step, data2=x_sbuf, op=nl.multiply)
    y_sbuf = nl.ndarray(step.shape, dtype=nl.float32, buffer=nl.sbuf)
    return {
        "x": x_sbuf, "step": step, "taken": taken, "y": y_sbuf, "b": spread(b, partitions), "c": spread(c, partitions),
    }  # fmt: skip


def spread(source, partitions):
    """source [G, N] @ HBM beside the channels of its group: [P, N] @ SBUF."""
    groups, states = source.shape
    tile = nl.ndarray((partitions, states), dtype=source.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=source.expand_dim(1).broadcast(1, partitions // groups))
    return tile


def store(target, tile):
    """Write `tile` @ SBUF to `target` @ HBM, rounded to its dtype."""
    if tile.dtype != target.dtype:
        rounded = nl.ndarray(tile.shape, dtype=target.dtype, buffer=nl.sbuf)
        nisa.tensor_copy(dst=rounded, src=tile, engine=nisa.engine.vector)
        tile = rounded
    nisa.dma_copy(dst=target, src=tile)


def load_steps(dt_sbuf, bias_sbuf, softplus):
    """Time steps [P, T] @ SBUF, float32: softplus(dt + bias), or dt + bias."""
    step = nl.ndarray(dt_sbuf.shape, dtype=nl.float32, buffer=nl.sbuf)
    if bias_sbuf != None:  # noqa: E711
        nisa.tensor_tensor(dst=step, data1=dt_sbuf, data2=bias_sbuf, op=nl.add)
    else:
        nisa.tensor_copy(dst=step, src=dt_sbuf, engine=nisa.engine.vector)
    if softplus:
        nisa.activation(dst=step, op=nl.softplus, data=step)
    return step


def advance(old, taken, step, a_sbuf, b_sbuf):
    """exp(step a) old + taken b: the new states [P, T, N] @ SBUF, float32."""
    _, depth, states = old.shape
    decay = nl.ndarray(old.shape, dtype=nl.float32, buffer=nl.sbuf)
    if states >= LONG_ROW:
        for t in range(depth):
            nisa.activation(dst=decay[:, t], op=nl.exp, data=a_sbuf[:, t], scale=step[:, t : t + 1])
    else:
        steps = step.expand_dim(2).broadcast(2, states)
        nisa.tensor_tensor(dst=decay, data1=a_sbuf, data2=steps, op=nl.multiply, engine=second_engine())
        nisa.activation(dst=decay, op=nl.exp, data=decay)

    new = nl.ndarray(old.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=new,
        data1=taken.expand_dim(2).broadcast(2, states),
        data2=b_sbuf.expand_dim(1).broadcast(1, depth),
        op=nl.multiply,
        engine=second_engine(),
    )
    nisa.tensor_tensor(dst=decay, data1=decay, data2=old, op=nl.multiply)
    nisa.tensor_tensor(dst=new, data1=new, data2=decay, op=nl.add)
    return new


def read_out(y_sbuf, new, c_sbuf):
    """Write sum_n c[n] new[n] to y [P, T] @ SBUF."""
    product = nl.ndarray(new.shape, dtype=nl.float32, buffer=nl.sbuf)
    spread_c = c_sbuf.expand_dim(1).broadcast(1, new.shape[1])
    nisa.tensor_tensor(dst=product, data1=new, data2=spread_c, op=nl.multiply, engine=second_engine())
    nisa.tensor_reduce(dst=y_sbuf, op=nl.add, data=product, axis=2)


def finish(y_sbuf, x_sbuf, d_sbuf, gate):
    """Turn y into (y + d x) silu(gate), [P, T]."""
    if d_sbuf != None:  # noqa: E711
        skip = nl.ndarray(y_sbuf.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=skip, data1=x_sbuf, data2=d_sbuf, op=nl.multiply)
        nisa.tensor_tensor(dst=y_sbuf, data1=y_sbuf, data2=skip, op=nl.add)
    if gate != None:  # noqa: E711
        silu = nl.ndarray(y_sbuf.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=silu, op=nl.silu, data=gate)
        nisa.tensor_tensor(dst=y_sbuf, data1=y_sbuf, data2=silu, op=nl.multiply)
