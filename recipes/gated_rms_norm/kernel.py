"""Root mean square normalisation with a gate: tokens on partitions, several short ones to each.

Legend: T = tokens, H = hidden, P = partitions, R = tokens of one partition, W = features of one group.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
TILE_BYTES = 2 * 1024  # of x per partition and DMA at least: short rows travel together


@nki.jit
def gated_rms_norm(x, gate, gamma, eps, gate_first, groups=1, function="silu"):
    """Divide each group of each row by its root mean square, scale by gamma and multiply by f(gate).

    Args:
        x: [T, H] @ HBM, float32 or bfloat16. Any T; H up to 8192.
        gate: [T, H] @ HBM, dtype of x or narrower.
        gamma: [H] @ HBM, dtype of x or narrower.
        eps: added to the mean square; a Python float.
        gate_first: multiply by the gate before normalising (Mamba 2) or after (gated delta nets).
        groups: of H / groups features each, normalised by themselves.
        function: f, "silu" or "sigmoid".
    Returns: [T, H] @ HBM, dtype of x.
    Accuracy: float32 throughout, rounded once.
    """
    tokens, hidden = x.shape
    assert hidden % groups == 0, f"gated_rms_norm: {hidden} features do not divide into {groups} groups"
    fits = gamma.dtype == x.dtype or x.dtype == nl.float32
    assert fits, "gated_rms_norm: gamma must have the dtype of x, or a narrower one beside float32"
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    rows = min(tokens, P)
    gamma_sbuf = nl.ndarray((rows, hidden), dtype=gamma.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=gamma_sbuf, src=gamma.expand_dim(0).broadcast(0, rows))
    most = max(1, TILE_BYTES // (hidden * (4 if x.dtype == nl.float32 else 2)))
    first = 0
    while first < tokens:
        left = tokens - first
        each = min(most, max(1, left // P))
        parts = min(P, left // each)
        last = first + parts * each
        shape = (parts, each, hidden)
        x_sbuf = nl.ndarray(shape, dtype=x.dtype, buffer=nl.sbuf)
        gate_sbuf = nl.ndarray(shape, dtype=gate.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :].reshape(shape))
        nisa.dma_copy(dst=gate_sbuf, src=gate[first:last, :].reshape(shape))
        open_gate = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
        ops = {"silu": nl.silu, "sigmoid": nl.sigmoid}
        nisa.activation(dst=open_gate, op=ops[function], data=gate_sbuf)
        if gate_first:
            gate_then_normalize(x_sbuf, open_gate, gamma_sbuf, eps, groups)
        else:
            normalize_then_gate(x_sbuf, open_gate, gamma_sbuf, eps, groups)
        nisa.dma_copy(dst=out[first:last, :].reshape(shape), src=x_sbuf)
        first = last
    return out


def gate_then_normalize(x_sbuf, open_gate, gamma_sbuf, eps, groups):
    """Turn x [parts, R, H] into norm(x * gate) * gamma."""
    gated = open_gate  # each element is read before it is written
    nisa.tensor_tensor(dst=gated, data1=x_sbuf, data2=open_gate, op=nl.multiply, engine=nisa.engine.vector)
    scale_sbuf = inverse_root_mean_squares(gated, eps, groups)
    scale_groups(x_sbuf, gated, scale_sbuf, gamma_sbuf, groups)


def normalize_then_gate(x_sbuf, open_gate, gamma_sbuf, eps, groups):
    """Turn x [parts, R, H] into norm(x) * gamma * gate."""
    scale_sbuf = inverse_root_mean_squares(x_sbuf, eps, groups)
    normal = nl.ndarray(x_sbuf.shape, dtype=nl.float32, buffer=nl.sbuf)
    scale_groups(normal, x_sbuf, scale_sbuf, gamma_sbuf, groups)
    nisa.tensor_tensor(dst=x_sbuf, data1=normal, data2=open_gate, op=nl.multiply, engine=nisa.engine.vector)


def inverse_root_mean_squares(data, eps, groups):
    """Return 1 / sqrt(mean(data^2) + eps) of each group of each row: [parts, R * groups] @ SBUF, float32.

    The root is taken on GpSimdE: on ScalarE it would change its table for a few numbers, and back for the gate.
    """
    parts, each, hidden = data.shape
    width = hidden // groups
    scale_sbuf = nl.ndarray((parts, each * groups), dtype=nl.float32, buffer=nl.sbuf)
    for row in range(each):
        for group in range(groups):
            squares = nl.ndarray((parts, width), dtype=nl.float32, buffer=nl.sbuf)
            place = row * groups + group
            nisa.activation_reduce(
                dst=squares,
                op=nl.square,
                data=data[:, row, group * width : (group + 1) * width],
                reduce_op=nl.add,
                reduce_res=scale_sbuf[:, place : place + 1],
            )
    nisa.tensor_scalar(
        dst=scale_sbuf,
        data=scale_sbuf,
        op0=nl.multiply,
        operand0=1.0 / width,
        op1=nl.add,
        operand1=eps,
        engine=nisa.engine.vector,
    )
    nisa.tensor_scalar(
        dst=scale_sbuf, data=scale_sbuf, op0=nl.rsqrt, operand0=None, engine=nisa.engine.gpsimd
    )
    return scale_sbuf


def scale_groups(dst, data, scale_sbuf, gamma_sbuf, groups):
    """Write data * scale * gamma, group by group; all [parts, R, H]."""
    parts, each, hidden = data.shape
    width = hidden // groups
    for row in range(each):
        for group in range(groups):
            place = row * groups + group
            start, stop = group * width, (group + 1) * width
            nisa.scalar_tensor_tensor(
                dst=dst[:, row, start:stop],
                data=data[:, row, start:stop],
                op0=nl.multiply,
                operand0=scale_sbuf[:, place : place + 1],
                op1=nl.multiply,
                operand1=gamma_sbuf[0:parts, start:stop],
            )
