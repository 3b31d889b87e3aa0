"""Rotary position embedding, half rotation: a token in each partition, its heads side by side.

Legend: T = tokens, N = heads, D = head dimension, P = partitions.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128


@nki.jit
def rope(x, cos, sin):
    """x * cos + rotate_half(x) * sin of x [T, N, D] @ HBM, with cos and sin [T, D]. Returns [T, N, D], rounded once."""
    tokens, heads, width = x.shape
    half = width // 2
    out = nl.ndarray((tokens, heads, width), dtype=x.dtype, buffer=nl.shared_hbm)
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        rows = last - first
        x_sbuf = nl.ndarray((rows, heads, width), dtype=x.dtype, buffer=nl.sbuf)
        cos_sbuf = nl.ndarray((rows, width), dtype=cos.dtype, buffer=nl.sbuf)
        sin_sbuf = nl.ndarray((rows, width), dtype=sin.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last])
        nisa.dma_copy(dst=cos_sbuf, src=cos[first:last])
        nisa.dma_copy(dst=sin_sbuf, src=sin[first:last])

        turned = nl.ndarray((rows, heads, width), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=turned[:, :, 0:half], data=x_sbuf[:, :, half:width], op0=nl.multiply, operand0=-1.0
        )
        nisa.tensor_copy(dst=turned[:, :, half:width], src=x_sbuf[:, :, 0:half])
        across = sin_sbuf.expand_dim(1).broadcast(1, heads)
        nisa.tensor_tensor(dst=turned, data1=turned, data2=across, op=nl.multiply)
        straight = nl.ndarray((rows, heads, width), dtype=nl.float32, buffer=nl.sbuf)
        along = cos_sbuf.expand_dim(1).broadcast(1, heads)
        nisa.tensor_tensor(dst=straight, data1=x_sbuf, data2=along, op=nl.multiply)
        nisa.tensor_tensor(dst=x_sbuf, data1=straight, data2=turned, op=nl.add)
        nisa.dma_copy(dst=out[first:last], src=x_sbuf)
    return out
