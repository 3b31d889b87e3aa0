"""silu(gate) * up of a projection that holds both side by side. Legend: T = tokens, I = intermediate, P = partitions."""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128


@nki.jit
def swiglu(x):
    """silu of the left half of x [T, 2 I] @ HBM times its right half. Returns [T, I], dtype of x, rounded once."""
    tokens, both = x.shape
    width = both // 2
    out = nl.ndarray((tokens, width), dtype=x.dtype, buffer=nl.shared_hbm)
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        rows = last - first
        x_sbuf = nl.ndarray((rows, both), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :])
        gate = nl.ndarray((rows, width), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=gate, op=nl.silu, data=x_sbuf[:, 0:width])
        out_sbuf = nl.ndarray((rows, width), dtype=x.dtype, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=out_sbuf, data1=gate, data2=x_sbuf[:, width:both], op=nl.multiply)
        nisa.dma_copy(dst=out[first:last, :], src=out_sbuf)
    return out
