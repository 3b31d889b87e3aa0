"""Tables of rotary position embedding: cosine and sine of position times frequency, for any position to 131072.

ScalarE knows the sine from -pi to pi only, so every angle is first brought there by subtracting whole turns.

Legend: A = axes of a position (1 for text; time, height and width for pictures), T = tokens, F = frequencies,
W = width of the tables, P = partitions, R = tokens of one partition.
"""

import math

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
TILE_ELEMENTS = 1024  # angles of one partition in one step
# A turn, 2 pi, in three parts. The first has 8 digits and the second 9, so that their products with up to 2**15 whole
# turns are exact in float32, and so is the subtraction: nothing is lost but the last digits of the third part.
TURN_HIGH = 6.28125
TURN_MIDDLE = 0.0019340515136718750  # 507 / 2**18
TURN_LOW = 2 * math.pi - TURN_HIGH - TURN_MIDDLE


@nki.jit
def rope_table(positions, frequencies, scaling, layout):
    """Compute cos and sin of the angles sum over A of position * frequency.

    Args:
        positions: [A, T] @ HBM, int32, 0 to 131072.
        frequencies: [A, F] @ HBM, float32 or bfloat16, at most 1 in magnitude; 0 where an axis has no part.
        scaling: factor of both tables; a Python float.
        layout: "once" (W = F), "halves" (W = 2 F: all, then all again) or "interleaved" (W = 2 F: each twice).
    Returns: cos and sin, [T, W] @ HBM, float32.
    Accuracy: the angle is one float32 product, as in the model; sine and cosine of it to 3e-7.
    """
    tokens = positions.shape[1]
    count = frequencies.shape[1]
    width = count if layout == "once" else 2 * count
    cos = nl.ndarray((tokens, width), dtype=nl.float32, buffer=nl.shared_hbm)
    sin = nl.ndarray((tokens, width), dtype=nl.float32, buffer=nl.shared_hbm)
    rows = min(tokens, P)
    frequency_sbuf = load_frequencies(frequencies, rows)
    most = max(1, TILE_ELEMENTS // count)
    first = 0
    while first < tokens:
        left = tokens - first
        each = min(most, max(1, left // P))
        parts = min(P, left // each)
        last = first + parts * each
        angles = angles_of(positions, frequency_sbuf, first, parts, each)
        reduced = within_half_a_turn(angles)
        shape = (parts, each, width)
        store_tables(
            cos[first:last, :].reshape(shape), sin[first:last, :].reshape(shape), reduced, scaling, layout
        )
        first = last
    return cos, sin


def load_frequencies(frequencies, rows):
    """Return the frequencies on every partition: [rows, A, F] @ SBUF, float32."""
    axes, count = frequencies.shape
    loaded = nl.ndarray((rows, axes, count), dtype=frequencies.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=loaded, src=frequencies.expand_dim(0).broadcast(0, rows))
    if frequencies.dtype == nl.float32:
        return loaded
    exact = nl.ndarray((rows, axes, count), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=exact, src=loaded, engine=nisa.engine.vector)
    return exact


def angles_of(positions, frequency_sbuf, first, parts, each):
    """Return the angles of tokens [first, first + parts * R): [parts, R, F] @ SBUF, float32."""
    _, axes, count = frequency_sbuf.shape
    angles = nl.ndarray((parts, each, count), dtype=nl.float32, buffer=nl.sbuf)
    for axis in range(axes):
        position = nl.ndarray((parts, each), dtype=positions.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=position, src=positions[axis, first : first + parts * each].reshape((parts, each)))
        number = nl.ndarray((parts, each), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=number, src=position, engine=nisa.engine.vector)
        product = angles
        if axis > 0:
            product = nl.ndarray((parts, each, count), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(
            dst=product,
            data1=number.expand_dim(2).broadcast(2, count),
            data2=frequency_sbuf[0:parts, axis, :].expand_dim(1).broadcast(1, each),
            op=nl.multiply,
        )
        if axis > 0:  # a frequency belongs to one axis: the others add zero
            nisa.tensor_tensor(dst=angles, data1=angles, data2=product, op=nl.add)
    return angles


def within_half_a_turn(angles):
    """Return the angles less whole turns, from -pi to pi and a little beyond: a tile like `angles`.

    The quotient is itself rounded, so near half a turn the nearest whole number may be missed by 0.002 turns.
    """
    turns = nl.ndarray(
        angles.shape, dtype=nl.int32, buffer=nl.sbuf
    )  # rounded to the nearest as it is written
    nisa.tensor_scalar(
        dst=turns, data=angles, op0=nl.multiply, operand0=0.5 / math.pi, engine=nisa.engine.vector
    )
    for part in (TURN_HIGH, TURN_MIDDLE, TURN_LOW):
        nisa.scalar_tensor_tensor(
            dst=angles, data=turns, op0=nl.multiply, operand0=-part, op1=nl.add, operand1=angles
        )
    return angles


def store_tables(cos_hbm, sin_hbm, angles, scaling, layout):
    """Write sine and cosine of angles [parts, R, F] in the layout asked for.

    cos a = sin(pi / 2 - |a|), and sin a = sin(2 c - a) with c the angle cut at +-pi / 2 (beyond it, sin(pi - a)):
    both stay well within the range of ScalarE's table.
    """
    quarter = nl.ndarray((angles.shape[0], 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=quarter, value=0.5 * math.pi)
    magnitude = nl.ndarray(angles.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=magnitude, op=nl.abs, data=angles)
    folded = nl.ndarray(angles.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=folded,
        data=angles,
        op0=nl.minimum,
        operand0=0.5 * math.pi,
        op1=nl.maximum,
        operand1=-0.5 * math.pi,
        engine=nisa.engine.vector,
    )
    nisa.scalar_tensor_tensor(
        dst=folded, data=folded, op0=nl.multiply, operand0=2.0, op1=nl.subtract, operand1=angles
    )
    sine = nl.ndarray(angles.shape, dtype=nl.float32, buffer=nl.sbuf)
    cosine = nl.ndarray(angles.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=sine, op=nl.sin, data=folded)
    nisa.activation(dst=cosine, op=nl.sin, data=magnitude, scale=-1.0, bias=quarter)
    store_table(sin_hbm, sine, scaling, layout)
    store_table(cos_hbm, cosine, scaling, layout)


def store_table(table_hbm, values, scaling, layout):
    """Write values * scaling, each once or twice, to [parts, R, W] @ HBM."""
    count = values.shape[2]
    table = nl.ndarray(table_hbm.shape, dtype=nl.float32, buffer=nl.sbuf)
    if layout == "once":
        places = (table,)
    elif layout == "halves":
        places = (table[:, :, 0:count], table[:, :, count : 2 * count])
    else:
        assert layout == "interleaved", f"rope_table: unknown layout {layout}"
        places = (table[:, :, 0 : 2 * count : 2], table[:, :, 1 : 2 * count : 2])
    for place in places:
        nisa.activation(dst=place, op=nl.copy, data=values, scale=scaling)  # VectorE has reduced the angles
    nisa.dma_copy(dst=table_hbm, src=table)
