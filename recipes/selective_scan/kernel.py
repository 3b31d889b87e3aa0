"""Selective scan (Mamba): channels on partitions, time along the free axis, all states of a channel side by side.

VectorE has an instruction that runs a first-order recurrence along the free axis. The N states of a block of time
steps lie one after the other in it: a decay of zero at each state's first step separates them, and what the state held
before goes into that step's increment. So one instruction scans all states of 128 channels.

Legend: B = batch, E = channels, S = time steps, N = states per channel, P = channels of a tile, L = steps of a block.
"""

import nki
import nki.isa as nisa
import nki.language as nl

# Elements per partition of a block, N x L: float32 tiles of 8 KiB, small enough that engines take turns on several.
BLOCK_ELEMENTS = 2048


@nki.jit
def selective_scan(x, dt, a, b, c, d=None, z=None, dt_bias=None, softplus=False):
    """Run h[n, s] = exp(dt a[n]) h[n, s-1] + dt b[n, s] x[s] over time in each channel; y[s] = sum_n c[n, s] h[n, s].

    Args:
        x: [B, E, S] @ HBM, float32 or bfloat16.
        dt: [B, E, S] @ HBM, time steps, before bias and softplus.
        a: [E, N] @ HBM, negative rates of decay. N up to 512.
        b, c: [B, N, S] @ HBM.
        d: [E] @ HBM or None: adds d x to y.
        z: [B, E, S] @ HBM or None: multiplies y by silu(z).
        dt_bias: [E] @ HBM or None, added to dt.
        softplus: whether the time steps are softplus(dt + dt_bias).
    Returns: y [B, E, S] @ HBM, float32 if any of x, d and z is, else bfloat16; and the last h, [B, E, N], float32.
    Accuracy: float32 throughout, rounded once.
    """
    batch, channels, steps = x.shape
    states = a.shape[1]
    pmax = nl.tile_size.pmax
    assert states <= nl.tile_size.psum_bank_fmax, f"selective_scan: {states} states, at most 512"
    out = nl.ndarray(x.shape, dtype=output_dtype(x, d, z), buffer=nl.shared_hbm)
    last = nl.ndarray((batch, channels, states), dtype=nl.float32, buffer=nl.shared_hbm)
    identity = nl.shared_identity_matrix(n=pmax, dtype=nl.float32)
    block = max(1, min(BLOCK_ELEMENTS // states, nl.tile_size.psum_bank_fmax))
    tiles = (channels + pmax - 1) // pmax
    for row in range(batch):
        hidden = []
        for first_step in range(0, steps, block):
            span = slice(first_step, min(first_step + block, steps))
            b_sbuf = spread(b[row, :, span])
            c_sbuf = spread(c[row, :, span])
            for tile in range(tiles):
                rows = slice(tile * pmax, min((tile + 1) * pmax, channels))
                a_sbuf = load(a[rows])
                step = load_steps(dt[row, rows, span], column(dt_bias, rows), softplus)
                x_sbuf = load(x[row, rows, span])
                before = hidden[tile] if first_step > 0 else None
                h_sbuf, now = scan(x_sbuf, step, a_sbuf, b_sbuf, before)
                if first_step == 0:
                    hidden.append(now)
                else:
                    hidden[tile] = now
                # GpSimdE is slower than VectorE: every third tile's second product is VectorE's, and both end together.
                engine = nisa.engine.vector if tile % 3 == 0 else second_engine()
                total = weigh(h_sbuf, c_sbuf, identity, engine)
                gate = load(z[row, rows, span]) if z != None else None  # noqa: E711
                store(out[row, rows, span], total, x_sbuf, column(d, rows), gate)
        for tile in range(tiles):
            rows = slice(tile * pmax, min((tile + 1) * pmax, channels))
            nisa.dma_copy(dst=last[row, rows], src=hidden[tile])
    return out, last


def output_dtype(x, d, z):
    """What arithmetic in torch makes of these: float32 as soon as one operand is."""
    dtype = x.dtype
    if d != None and d.dtype == nl.float32:  # noqa: E711 (the NKI compiler has no `is`)
        dtype = nl.float32
    if z != None and z.dtype == nl.float32:  # noqa: E711
        dtype = nl.float32
    return dtype


def second_engine():
    """Where large products go: GpSimdE beside VectorE, except on gen2, where the two exclude each other from SBUF."""
    if nisa.get_nc_version() == nisa.nc_version.gen2:
        return nisa.engine.vector
    return nisa.engine.gpsimd


def load(source):
    """The rows of `source` [P, F] @ HBM in SBUF, in their own dtype."""
    tile = nl.ndarray(source.shape, dtype=source.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=source)
    return tile


def column(source, rows):
    """A float32 column [P, 1] @ SBUF of source [E] @ HBM; None for None."""
    if source == None:  # noqa: E711
        return None
    tile = nl.ndarray((rows.stop - rows.start, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=source[rows].expand_dim(1))
    return tile


def spread(source):
    """source [N, L] @ HBM in every partition: [128, N, L] @ SBUF."""
    states, steps = source.shape
    tile = nl.ndarray((nl.tile_size.pmax, states, steps), dtype=source.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=source.expand_dim(0).broadcast(0, nl.tile_size.pmax))
    return tile


def load_steps(dt_hbm, bias_sbuf, softplus):
    """Time steps [P, L] @ SBUF, float32: softplus(dt + bias), or dt + bias."""
    dt_sbuf = load(dt_hbm)
    step = nl.ndarray(dt_hbm.shape, dtype=nl.float32, buffer=nl.sbuf)
    if softplus:
        nisa.activation(dst=step, op=nl.softplus, data=dt_sbuf, bias=bias_sbuf)
    elif bias_sbuf != None:  # noqa: E711
        nisa.tensor_scalar(dst=step, data=dt_sbuf, op0=nl.add, operand0=bias_sbuf)
    else:
        nisa.tensor_copy(dst=step, src=dt_sbuf, engine=nisa.engine.vector)
    return step


def scan(x_sbuf, step, a_sbuf, b_sbuf, before):
    """All states at all steps, [P, N, L], and at the last, [P, N]; both @ SBUF, float32.

    before: the states that the block starts from [P, N] @ SBUF; None for zeros.
    """
    channels, states = a_sbuf.shape
    steps = step.shape[1]
    a_float = a_sbuf
    if a_sbuf.dtype != nl.float32:  # a scale must be float32
        a_float = nl.ndarray(a_sbuf.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=a_float, src=a_sbuf, engine=nisa.engine.vector)
    decay = nl.ndarray((channels, states, steps), dtype=nl.float32, buffer=nl.sbuf)
    for n in range(states):
        nisa.activation(dst=decay[:, n, :], op=nl.exp, data=step, scale=a_float[:, n : n + 1])

    scaled = nl.ndarray((channels, steps), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=scaled, data1=step, data2=x_sbuf, op=nl.multiply)
    h_sbuf = nl.ndarray((channels, states, steps), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=h_sbuf,
        data1=b_sbuf[0:channels],
        data2=scaled.expand_dim(1).broadcast(1, states),
        op=nl.multiply,
        engine=second_engine(),
    )
    if before != None:  # noqa: E711
        carried = nl.ndarray((channels, states, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=carried, data1=decay[:, :, 0:1], data2=before.expand_dim(2), op=nl.multiply)
        nisa.tensor_tensor(dst=h_sbuf[:, :, 0:1], data1=h_sbuf[:, :, 0:1], data2=carried, op=nl.add)
    nisa.memset(dst=decay[:, :, 0:1], value=0.0)
    nisa.tensor_tensor_scan(dst=h_sbuf, data0=decay, data1=h_sbuf, initial=0.0, op0=nl.multiply, op1=nl.add)
    now = nl.ndarray((channels, states), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=now, src=h_sbuf[:, :, steps - 1], engine=nisa.engine.vector)
    return h_sbuf, now


def weigh(h_sbuf, c_sbuf, identity, engine):
    """sum_n c[n, s] h[p, n, s], [P, L] @ PSUM: TensorE sums over the states by adding products with the identity."""
    channels, states, steps = h_sbuf.shape
    product = nl.ndarray(h_sbuf.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=product, data1=h_sbuf, data2=c_sbuf[0:channels], op=nl.multiply, engine=engine)
    total = nl.ndarray((channels, steps), dtype=nl.float32, buffer=nl.psum)
    for n in range(states):
        nisa.nc_matmul(
            dst=total,
            stationary=identity[0:channels, 0:channels],
            moving=product[:, n, :],
            accumulate=n > 0,
        )
    return total


def store(out_hbm, total, x_sbuf, d_sbuf, gate):
    """Write (total + d x) silu(gate) of one tile, [P, L]."""
    out_sbuf = nl.ndarray(out_hbm.shape, dtype=out_hbm.dtype, buffer=nl.sbuf)
    y_sbuf = out_sbuf if gate == None else nl.ndarray(out_hbm.shape, dtype=nl.float32, buffer=nl.sbuf)  # noqa: E711
    if d_sbuf != None:  # noqa: E711
        nisa.scalar_tensor_tensor(
            dst=y_sbuf, data=x_sbuf, op0=nl.multiply, operand0=d_sbuf, op1=nl.add, operand1=total
        )
    else:
        nisa.tensor_copy(dst=y_sbuf, src=total, engine=nisa.engine.vector)
    if gate != None:  # noqa: E711
        silu = nl.ndarray(out_hbm.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=silu, op=nl.silu, data=gate)
        nisa.tensor_tensor(dst=out_sbuf, data1=y_sbuf, data2=silu, op=nl.multiply)
    nisa.dma_copy(dst=out_hbm, src=out_sbuf)
