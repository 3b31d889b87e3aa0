"""Elementwise activation function: every partition takes a run of consecutive elements, whatever the shape of x.

Legend: N = elements of x, P = partitions, F = elements of one partition in one step.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
STEP_BYTES = 8 * 1024  # of x per partition and DMA


@nki.jit
def activation(x, function):
    """Apply a function to every element.

    Args:
        x: [...] @ HBM, any shape, float32 or bfloat16.
        function: "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "relu6", "silu", "sigmoid", "tanh", "softplus",
            "mish", "hard_swish" or "exp".
    Returns: shape and dtype of x.
    Accuracy: float32 inside, rounded once.
    """
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    flat, out_flat = x.reshape((x.size,)), out.reshape((x.size,))
    run = x.size // P
    even = run * P
    if run > 0:
        rows, out_rows = flat[0:even].reshape((P, run)), out_flat[0:even].reshape((P, run))
        step = STEP_BYTES // (4 if x.dtype == nl.float32 else 2)
        for first in range(0, run, step):
            last = min(first + step, run)
            apply(out_rows[:, first:last], rows[:, first:last], function)
    if even < x.size:
        left = x.size - even  # less than P elements: one on each partition
        apply(out_flat[even:].reshape((left, 1)), flat[even:].reshape((left, 1)), function)
    return out


def one_instruction(function):
    """Return the op by which ScalarE computes the function in one instruction, or None if it cannot."""
    ops = {
        "gelu": nl.gelu,
        "gelu_tanh": nl.gelu_apprx_tanh,
        "quick_gelu": nl.gelu_apprx_sigmoid,
        "relu": nl.relu,
        "silu": nl.silu,
        "sigmoid": nl.sigmoid,
        "tanh": nl.tanh,
        "softplus": nl.softplus,
        "mish": nl.mish,
        "exp": nl.exp,
    }
    return ops[function] if function in ops else None


def apply(out_hbm, x_hbm, function):
    """Load [rows, F], apply the function in place, store."""
    x_sbuf = nl.ndarray(x_hbm.shape, dtype=x_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_sbuf, src=x_hbm)
    op = one_instruction(function)
    if op != None:  # noqa: E711 (the NKI compiler has no `is`)
        nisa.activation(dst=x_sbuf, op=op, data=x_sbuf)
    elif function == "relu2":  # max(x, 0) * x
        nisa.scalar_tensor_tensor(
            dst=x_sbuf, data=x_sbuf, op0=nl.maximum, operand0=0.0, op1=nl.multiply, operand1=x_sbuf
        )
    elif function == "relu6":
        clamp(x_sbuf, x_sbuf, 0.0, 6.0)
    else:
        assert function == "hard_swish", f"activation: unknown function {function}"
        hard_swish(x_sbuf)
    nisa.dma_copy(dst=out_hbm, src=x_sbuf)


def clamp(dst, data, least, most):
    """Write min(max(data, least), most)."""
    nisa.tensor_scalar(
        dst=dst,
        data=data,
        op0=nl.maximum,
        operand0=least,
        op1=nl.minimum,
        operand1=most,
        engine=nisa.engine.vector,
    )


def hard_swish(x_sbuf):
    """Turn x into x * min(max(x + 3, 0), 6) / 6."""
    gate = nl.ndarray(x_sbuf.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=gate,
        data=x_sbuf,
        op0=nl.add,
        operand0=3.0,
        op1=nl.maximum,
        operand1=0.0,
        engine=nisa.engine.vector,
    )
    nisa.tensor_scalar(
        dst=gate,
        data=gate,
        op0=nl.minimum,
        operand0=6.0,
        op1=nl.multiply,
        operand1=1.0 / 6.0,
        engine=nisa.engine.vector,
    )
    nisa.tensor_tensor(dst=x_sbuf, data1=gate, data2=x_sbuf, op=nl.multiply, engine=nisa.engine.vector)
