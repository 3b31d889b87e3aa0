"""One step of a causal depthwise convolution: the state moves by one element, the last K make the result.

Legend: B = sequences, C = channels, L = length of the state, K = taps, P = partitions, J = channels of a partition.

Nothing but elementwise work on few elements: channels lie on partitions, J neighbours on each, so that a DMA moves long
pieces and an instruction serves all sequences.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BLOCK_BYTES = 8 * 1024  # of the state per partition, in float32


@nki.jit
def causal_conv1d_update(x, state, weight, bias=None, silu=False):
    """Append x to the state; sum the last K elements of each channel, weighted, add the bias, and take silu if asked.

    Args:
        x: [B, C, 1] @ HBM, float32 or bfloat16.
        state: [B, C, L] @ HBM, dtype of x, oldest element first. L at least K - 1.
        weight: [C, K] @ HBM, dtype of x; the last tap meets x.
        bias: [C] @ HBM, dtype of x, or None.
        silu: whether the result is y * sigmoid(y); a Python bool.
    Returns: result [B, C, 1] and the new state [B, C, L] @ HBM, dtype of x.
    Accuracy: products and sums in float32, rounded once; the state exactly.
    """
    sequences, channels, length = state.shape
    taps = weight.shape[1]
    assert x.shape == (sequences, channels, 1), (
        "causal_conv1d_update: x must be [B, C, 1] for state [B, C, L]"
    )
    assert weight.shape[0] == channels, "causal_conv1d_update: weight must be [C, K] for state [B, C, L]"
    assert length >= taps - 1, "causal_conv1d_update: a state holds at least K - 1 elements"
    assert x.dtype == state.dtype, "causal_conv1d_update: the state must have the dtype of x"
    assert weight.dtype == x.dtype, "causal_conv1d_update: weight must have the dtype of x"
    out = nl.ndarray((sequences, channels, 1), dtype=x.dtype, buffer=nl.shared_hbm)
    new_state = nl.ndarray((sequences, channels, length), dtype=x.dtype, buffer=nl.shared_hbm)
    whole = channels - channels % P
    for first, last, partitions in ((0, whole, P), (whole, channels, channels - whole)):
        if first < last:
            bias_here = None
            if bias != None:  # noqa: E711 (the NKI compiler has no `is`)
                bias_here = bias[first:last]
            results = (out[:, first:last, :], new_state[:, first:last, :])
            operands = (x[:, first:last, :], state[:, first:last, :], weight[first:last, :])
            step_channels(results, operands, bias_here, partitions, silu)
    return out, new_state


def step_channels(results, operands, bias, partitions, silu):
    """Serve some channels: load what belongs to them, then sequences in blocks that fit SBUF."""
    x, state, weight = operands
    sequences, channels, length = state.shape
    run, taps = channels // partitions, weight.shape[1]
    weight_PJK = nl.ndarray((partitions, run, taps), dtype=weight.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=weight_PJK, src=weight.reshape((partitions, run, taps)))
    bias_PJ = nl.ndarray((partitions, run), dtype=weight.dtype, buffer=nl.sbuf)
    if bias != None:  # noqa: E711
        nisa.dma_copy(dst=bias_PJ, src=bias.reshape((partitions, run)))
    else:
        nisa.memset(dst=bias_PJ, value=0.0)
    block = max(1, BLOCK_BYTES // (run * length * 4))
    for first in range(0, sequences, block):
        last = min(first + block, sequences)
        step_sequences(
            (results[0][first:last, :, :], results[1][first:last, :, :]),
            spread(x[first:last, :, :], partitions)[:, :, :, 0],
            spread(state[first:last, :, :], partitions),
            weight_PJK,
            bias_PJ,
            silu,
        )


def spread(tensor_hbm, partitions):
    """View [B, C, L] @ HBM as [P, B, J, L]: J neighbouring channels to a partition."""
    return tensor_hbm.reshape_dim(1, (partitions, tensor_hbm.shape[1] // partitions)).permute((1, 0, 2, 3))


def step_sequences(results, x_hbm, state_hbm, weight_PJK, bias_PJ, silu):
    """Serve some sequences, from load to store."""
    partitions, sequences, run, length = state_hbm.shape
    history = weight_PJK.shape[2] - 1  # elements of the state that still count
    x_PBJ = nl.ndarray((partitions, sequences, run), dtype=x_hbm.dtype, buffer=nl.sbuf)
    state_PBJL = nl.ndarray((partitions, sequences, run, length), dtype=x_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_PBJ, src=x_hbm)
    nisa.dma_copy(dst=state_PBJL, src=state_hbm)

    new_state = nl.ndarray((partitions, sequences, run, length), dtype=x_hbm.dtype, buffer=nl.sbuf)
    if length > 1:
        nisa.tensor_copy(
            dst=new_state[:, :, :, 0 : length - 1],
            src=state_PBJL[:, :, :, 1:length],
            engine=nisa.engine.gpsimd,
        )
    nisa.tensor_copy(dst=new_state[:, :, :, length - 1], src=x_PBJ, engine=nisa.engine.gpsimd)
    nisa.dma_copy(dst=spread(results[1], partitions), src=new_state)

    total = nl.ndarray((partitions, sequences, run), dtype=nl.float32, buffer=nl.sbuf)
    last_tap = weight_PJK[:, :, history].expand_dim(1).broadcast(1, sequences)
    nisa.tensor_tensor(dst=total, data1=x_PBJ, data2=last_tap, op=nl.multiply, engine=nisa.engine.vector)
    for tap in range(history):
        product = nl.ndarray((partitions, sequences, run), dtype=nl.float32, buffer=nl.sbuf)
        older = state_PBJL[:, :, :, length - history + tap]
        weights = weight_PJK[:, :, tap].expand_dim(1).broadcast(1, sequences)
        nisa.tensor_tensor(dst=product, data1=older, data2=weights, op=nl.multiply, engine=nisa.engine.vector)
        nisa.tensor_tensor(dst=total, data1=total, data2=product, op=nl.add, engine=nisa.engine.vector)
    biases = bias_PJ.expand_dim(1).broadcast(1, sequences)
    out_PBJ = nl.ndarray((partitions, sequences, run), dtype=x_hbm.dtype, buffer=nl.sbuf)
    if silu:
        nisa.tensor_tensor(dst=total, data1=total, data2=biases, op=nl.add, engine=nisa.engine.vector)
        nisa.activation(dst=out_PBJ, op=nl.silu, data=total)
    else:
        nisa.tensor_tensor(dst=out_PBJ, data1=total, data2=biases, op=nl.add, engine=nisa.engine.vector)
    nisa.dma_copy(dst=spread(results[0], partitions)[:, :, :, 0], src=out_PBJ)
