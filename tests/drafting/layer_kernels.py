"""Correct kernels written by hand, in place of a language model's replies. `{name}` is the task's name."""

from __future__ import annotations

_HEAD = '''"""{name}"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128


'''

LAYER_NORM = (
    _HEAD
    + '''@nki.jit
def {name}(x, weight, bias):
    """x [T, H], weight [H], bias [H] @ HBM. Returns [T, H]."""
    tokens, hidden = x.shape
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    rows = min(tokens, P)
    weight_sbuf = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
    bias_sbuf = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=weight_sbuf, src=weight.expand_dim(0).broadcast(0, rows))
    nisa.dma_copy(dst=bias_sbuf, src=bias.expand_dim(0).broadcast(0, rows))
    eps_sbuf = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=eps_sbuf, value=1e-5)
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        n = last - first
        x_sbuf = nl.ndarray((n, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :])
        total = nl.ndarray((n, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=total, op=nl.add, data=x_sbuf, axis=1)
        mean = nl.ndarray((n, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=mean, data=total, op0=nl.multiply, operand0=1.0 / hidden)
        centred = nl.ndarray((n, hidden), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=centred, data=x_sbuf, op0=nl.subtract, operand0=mean)
        squares = nl.ndarray((n, hidden), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=squares, op=nl.square, data=centred)
        variance = nl.ndarray((n, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=variance, op=nl.add, data=squares, axis=1)
        scale = nl.ndarray((n, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=scale, op=nl.rsqrt, data=variance, bias=eps_sbuf[0:n, :], scale=1.0 / hidden)
        normal = nl.ndarray((n, hidden), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=normal, data=centred, op0=nl.multiply, operand0=scale)
        gained = nl.ndarray((n, hidden), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=gained, data1=normal, data2=weight_sbuf[0:n, :], op=nl.multiply)
        result = nl.ndarray((n, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=result, data1=gained, data2=bias_sbuf[0:n, :], op=nl.add)
        nisa.dma_copy(dst=out[first:last, :], src=result)
    return out
'''
)

GAIN_BESIDE_ONE_NORM = (
    _HEAD
    + '''@nki.jit
def {name}(x, weight):
    """x / rms(x) * (1 + weight): x [T, H], weight [H] @ HBM. Returns [T, H]."""
    tokens, hidden = x.shape
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    rows = min(tokens, P)
    weight_sbuf = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=weight_sbuf, src=weight.expand_dim(0).broadcast(0, rows))
    gain = nl.ndarray((rows, hidden), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=gain, data=weight_sbuf, op0=nl.add, operand0=1.0)
    eps_sbuf = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=eps_sbuf, value=1e-6)
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        n = last - first
        x_sbuf = nl.ndarray((n, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :])
        squares = nl.ndarray((n, hidden), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=squares, op=nl.square, data=x_sbuf)
        total = nl.ndarray((n, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=total, op=nl.add, data=squares, axis=1)
        scale = nl.ndarray((n, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=scale, op=nl.rsqrt, data=total, bias=eps_sbuf[0:n, :], scale=1.0 / hidden)
        normal = nl.ndarray((n, hidden), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=normal, data=x_sbuf, op0=nl.multiply, operand0=scale)
        result = nl.ndarray((n, hidden), dtype=x.dtype, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=result, data1=normal, data2=gain[0:n, :], op=nl.multiply)
        nisa.dma_copy(dst=out[first:last, :], src=result)
    return out
'''
)

GELU_MLP = (
    _HEAD
    + '''@nki.jit
def {name}(hidden_states, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    """gelu_tanh(x @ fc1 + b1) @ fc2 + b2: x [T, H], fc1 [H, N], fc2 [N, H] @ HBM; H and N at most 128."""
    tokens, hidden = hidden_states.shape
    inner = fc1_weight.shape[1]
    dtype = hidden_states.dtype
    out = nl.ndarray((tokens, hidden), dtype=dtype, buffer=nl.shared_hbm)
    first_weight = nl.ndarray((hidden, inner), dtype=dtype, buffer=nl.sbuf)
    second_weight = nl.ndarray((inner, hidden), dtype=dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=first_weight, src=fc1_weight)
    nisa.dma_copy(dst=second_weight, src=fc2_weight)
    first_rounded = nl.ndarray((inner, 1), dtype=dtype, buffer=nl.sbuf)
    second_rounded = nl.ndarray((hidden, 1), dtype=dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=first_rounded, src=fc1_bias.reshape((inner, 1)))
    nisa.dma_copy(dst=second_rounded, src=fc2_bias.reshape((hidden, 1)))
    first_bias = nl.ndarray((inner, 1), dtype=nl.float32, buffer=nl.sbuf)
    second_bias = nl.ndarray((hidden, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=first_bias, src=first_rounded)
    nisa.tensor_copy(dst=second_bias, src=second_rounded)
    x_HT = hidden_states.permute((1, 0))
    out_HT = out.permute((1, 0))
    for start in range(0, tokens, P):
        stop = min(start + P, tokens)
        n = stop - start
        x_sbuf = nl.ndarray((hidden, n), dtype=dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x_HT[:, start:stop])
        up_psum = nl.ndarray((inner, n), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=up_psum, stationary=first_weight, moving=x_sbuf, accumulate=False)
        up_sbuf = nl.ndarray((inner, n), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=up_sbuf, data=up_psum, op0=nl.add, operand0=first_bias)
        active = nl.ndarray((inner, n), dtype=dtype, buffer=nl.sbuf)
        nisa.activation(dst=active, op=nl.gelu_apprx_tanh, data=up_sbuf)
        down_psum = nl.ndarray((hidden, n), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=down_psum, stationary=second_weight, moving=active, accumulate=False)
        result = nl.ndarray((hidden, n), dtype=dtype, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=result, data=down_psum, op0=nl.add, operand0=second_bias)
        nisa.dma_copy(dst=out_HT[:, start:stop], src=result)
    return out
'''
)

SCALED_EMBEDDING = (
    _HEAD
    + '''@nki.jit
def {name}(input_ids, weight):
    """Rows of weight [V, H] named by input_ids [T], times sqrt(48)."""
    tokens, hidden = input_ids.shape[0], weight.shape[1]
    out = nl.ndarray((tokens, hidden), dtype=weight.dtype, buffer=nl.shared_hbm)
    ids = input_ids.reshape((tokens, 1))
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        ids_sbuf = nl.ndarray((last - first, 1), dtype=ids.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=ids_sbuf, src=ids[first:last, :])
        rows = nl.ndarray((last - first, hidden), dtype=weight.dtype, buffer=nl.sbuf)
        pattern = [[hidden, last - first], [1, hidden]]
        nisa.dma_copy(
            dst=rows, src=weight.ap(pattern=pattern, offset=0, vector_offset=ids_sbuf, indirect_dim=0)
        )
        result = nl.ndarray((last - first, hidden), dtype=weight.dtype, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=result, data=rows, op0=nl.multiply, operand0=6.928203230275509)
        nisa.dma_copy(dst=out[first:last, :], src=result)
    return out
'''
)


def kernel(text: str, name: str) -> str:
    """The kernel under a task's name."""
    return text.replace("{name}", name)
