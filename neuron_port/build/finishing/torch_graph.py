"""The graph as a torch function: every HLO instruction as the torch operation of the same meaning.

Engine `trace` needs a callable for torch_neuronx.trace, and the bundle's truth is HLO; so this reads the HLO.
It uses operations that every torch since 2.0 has, on whatever device its inputs are, so that tracing sees
plain static torch code. What it computes is checked against XLA-CPU and the golden values in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .hlo import Computation, HloError, Instruction, as_bytes, fields, read_computations, read_instruction
from .hlo_attributes import read_attributes

Tensor = torch.Tensor


class TorchGraph:
    """A HloModuleProto without custom calls, callable with its parameters in order.

    Raises: HloError for an instruction that has no torch form here.
    """

    def __init__(self, module: bytes) -> None:
        computations, entry = read_computations(module)
        self.by_id = {found.id: found for found in computations}
        self.entry = self.by_id[entry]
        self.attributes: dict[int, dict[str, Any]] = {}
        for number, value, _ in fields(module):
            for inner, raw, _ in fields(as_bytes(value)) if number == 3 else ():
                if inner == 2:
                    instruction = read_instruction(as_bytes(raw))
                    self.attributes[instruction.id] = read_attributes(as_bytes(raw))
        self.constants = {
            found.id: literal(self.attributes[found.id]["literal"])
            for found in self.entry.instructions
            if found.opcode == "constant"
        }
        self.uses = _last_uses(self.entry)
        unknown = sorted({found.opcode for found in self.entry.instructions} - set(OPERATIONS))
        if unknown:
            raise HloError(f"no torch form for HLO's {', '.join(unknown)}")

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The results, in order. Values are let go of after their last use."""
        device = inputs[0].device
        values: dict[int, Any] = {}
        for position, found in enumerate(self.entry.instructions):
            operands = [values[operand] for operand in found.operands]
            if found.opcode == "parameter":
                values[found.id] = inputs[found.parameter_number]
            else:
                call = Call(self, found, self.attributes[found.id], device)
                values[found.id] = OPERATIONS[found.opcode](call, *operands)
            for spent in self.uses.get(position, ()):
                if spent != self.entry.root:
                    del values[spent]
        result = values[self.entry.root]
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)


class Call:
    """One instruction while it is executed: its result's shape and dtype, its attributes."""

    def __init__(
        self, graph: TorchGraph, instruction: Instruction, attributes: Mapping[str, Any], device: Any
    ) -> None:
        self.graph, self.instruction, self.attributes, self.device = graph, instruction, attributes, device
        self.shape = list(instruction.shape.dimensions)

    @property
    def dtype(self) -> torch.dtype:
        return torch_dtype(self.instruction.shape.dtype)

    @property
    def axes(self) -> list[int]:
        return list(self.attributes.get("dimensions", []))

    @property
    def function(self) -> str:
        """The opcode that the called computation applies; "second" when it returns its second argument."""
        called: Computation = self.graph.by_id[self.instruction.called[0]]
        root = next(found for found in called.instructions if found.id == called.root)
        return "second" if root.opcode == "parameter" else root.opcode


def torch_dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _last_uses(entry: Computation) -> dict[int, list[int]]:
    """Position of an instruction -> values that nothing reads after it."""
    last: dict[int, int] = {}
    for position, found in enumerate(entry.instructions):
        last[found.id] = position
        for operand in found.operands:
            last[operand] = position
    spent: dict[int, list[int]] = {}
    for identity, position in last.items():
        spent.setdefault(position, []).append(identity)
    return spent


def literal(found: tuple[str, tuple[int, ...], Any]) -> Tensor:
    """A constant on the CPU. Made before anything is traced, where it then is one."""
    dtype, shape, values = found
    if not isinstance(values, tuple):
        return torch.tensor(values, dtype=torch_dtype(dtype)).reshape(shape)
    raw, kind = values
    plain = {"u1": torch.uint8, "i1": torch.int8, "<i2": torch.int16, "<u2": torch.int16,
             "<f2": torch.float16, "<f4": torch.float32, "<f8": torch.float64}[kind]  # fmt: skip
    tensor = torch.frombuffer(bytearray(raw), dtype=plain) if raw else torch.empty(0, dtype=plain)
    return tensor.view(torch_dtype(dtype)).reshape(shape)


# -- operations: (call, *operands) -> tensor -----------------------------------------------------------------


def _iota(call: Call) -> Tensor:
    axis = call.axes[0] if call.axes else 0
    counted = torch.arange(call.shape[axis], device=call.device, dtype=torch.int32).to(call.dtype)
    return counted.reshape([-1 if at == axis else 1 for at in range(len(call.shape))]).expand(call.shape)


def _broadcast(call: Call, x: Tensor) -> Tensor:
    spread = [1] * len(call.shape)
    for axis, size in zip(call.axes, x.shape, strict=True):
        spread[axis] = size
    return x.reshape(spread).expand(call.shape)


def _slice(call: Call, x: Tensor) -> Tensor:
    return x[
        tuple(slice(one["start"], one["limit"], max(one["stride"], 1)) for one in call.attributes["slices"])
    ]


def _pad(call: Call, x: Tensor, fill: Tensor) -> Tensor:
    for axis, edge in enumerate(call.attributes["padding"]):
        if edge["between"] and x.shape[axis] > 1:
            x = _spread(x, axis, edge["between"] + 1, fill)
        for at_front, count in ((True, edge["low"]), (False, edge["high"])):
            if count < 0:
                x = x.narrow(axis, -count if at_front else 0, x.shape[axis] + count)
            elif count:
                edges = fill.expand([count if at == axis else size for at, size in enumerate(x.shape)])
                x = torch.cat([edges, x] if at_front else [x, edges], axis)
    return x


def _spread(x: Tensor, axis: int, step: int, fill: Tensor) -> Tensor:
    """`x` with step - 1 elements of `fill` between its elements along `axis`."""
    gaps = fill.expand([*x.shape, step - 1]).movedim(-1, axis + 1)
    spread = torch.cat([x.unsqueeze(axis + 1), gaps], axis + 1).flatten(axis, axis + 1)
    return spread.narrow(axis, 0, spread.shape[axis] - step + 1)


def _dot(call: Call, left: Tensor, right: Tensor) -> Tensor:
    axes = call.attributes["dot"]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    names = [[""] * left.dim(), [""] * right.dim()]
    for one, other in (*zip(axes["left_batch"], axes["right_batch"]), *zip(axes["left"], axes["right"])):
        names[0][one] = names[1][other] = next(letters)
    for side in names:
        side[:] = [name or next(letters) for name in side]
    batch = [names[0][axis] for axis in axes["left_batch"]]
    kept = [name for side in names for name in side if (name in names[0]) != (name in names[1])]
    return torch.einsum(f"{''.join(names[0])},{''.join(names[1])}->{''.join(batch + kept)}", left, right)


def _reduce(call: Call, x: Tensor, start: Tensor) -> Tensor:
    axes = call.axes
    if call.function in ("maximum", "minimum"):
        found = torch.amax(x, axes) if call.function == "maximum" else torch.amin(x, axes)
        return BINARY[call.function](found, start)
    if call.function in ("and", "or"):
        found = x
        for axis in sorted(axes, reverse=True):
            found = torch.all(found, axis) if call.function == "and" else torch.any(found, axis)
        return BINARY[call.function](found, start)
    if call.function == "multiply":
        found = x
        for axis in sorted(axes, reverse=True):
            found = torch.prod(found, axis, dtype=x.dtype)
        return found * start
    if call.function != "add":
        raise HloError(f"no torch form for a reduction by {call.function}")
    return torch.sum(x, axes, dtype=x.dtype) + start


def _select(call: Call, condition: Tensor, on_true: Tensor, on_false: Tensor) -> Tensor:
    return torch.where(condition, on_true, on_false)


def _dynamic_update_slice(call: Call, x: Tensor, update: Tensor, *starts: Tensor) -> Tensor:
    """Axes that the update fills need no index. HLO moves a start so that the update fits."""
    partial = [axis for axis, size in enumerate(update.shape) if size != x.shape[axis]]
    if not partial:
        return update
    positions = torch.zeros([1] * x.dim(), dtype=torch.long, device=x.device)
    for axis in partial:
        count = update.shape[axis]
        start = torch.clamp(starts[axis].to(torch.long), 0, x.shape[axis] - count)
        at = start + torch.arange(count, device=x.device)
        stride = 1
        for later in partial:
            stride *= x.shape[later] if later > axis else 1
        positions = positions + (at * stride).reshape([-1 if own == axis else 1 for own in range(x.dim())])
    order = [*partial, *(axis for axis in range(x.dim()) if axis not in partial)]
    rows = x.permute(order).flatten(0, len(partial) - 1)
    new = update.permute(order).flatten(0, len(partial) - 1)
    written = rows.index_copy(0, positions.flatten(), new)
    back = [order.index(axis) for axis in range(x.dim())]
    return written.reshape([x.shape[axis] for axis in order]).permute(back)


def _dynamic_slice(call: Call, x: Tensor, *starts: Tensor) -> Tensor:
    for axis, size in enumerate(call.attributes["slice_sizes"]):
        if size != x.shape[axis]:
            start = torch.clamp(starts[axis].to(torch.long), 0, x.shape[axis] - size)
            x = x.index_select(axis, start + torch.arange(size, device=x.device))
    return x


def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Rows of one axis by index, as embeddings and positions need them; any gather of single elements."""
    numbers, sizes = call.attributes["gather"], call.attributes["gather_slice_sizes"]
    vector_axis = (numbers["vector_axis"] or [0])[0]
    starts = numbers["start"]
    vectors = indices.movedim(vector_axis, -1) if vector_axis < indices.dim() else indices.unsqueeze(-1)
    batch = list(vectors.shape[:-1])
    if any(size != x.shape[axis] for axis, size in enumerate(sizes) if axis not in starts) or any(
        sizes[axis] != 1 for axis in starts
    ):
        raise HloError("no torch form for a gather of windows")
    order = [*starts, *(axis for axis in range(x.dim()) if axis not in starts)]
    flat = torch.zeros(batch, dtype=torch.long, device=x.device)
    for place, axis in enumerate(starts):
        flat = flat * x.shape[axis] + torch.clamp(vectors[..., place].to(torch.long), 0, x.shape[axis] - 1)
    rows = x.permute(order).flatten(0, len(starts) - 1).index_select(0, flat.flatten())
    kept = [axis for axis in range(x.dim()) if axis not in numbers["collapsed"]]  # in the order of `offset`
    picked = rows.reshape([*batch, *(sizes[axis] for axis in order)])
    for place in sorted((order.index(axis) for axis in numbers["collapsed"]), reverse=True):
        picked = picked.squeeze(len(batch) + place)
    left = [axis for axis in order if axis in kept]
    picked = picked.permute([*range(len(batch)), *(len(batch) + left.index(axis) for axis in kept)])
    out, batch_axes = [0] * picked.dim(), iter(range(len(batch)))
    for at in range(picked.dim()):
        offset = numbers["offset"]
        out[at] = len(batch) + offset.index(at) if at in offset else next(batch_axes)
    return picked.permute(out)


def _convolution(call: Call, x: Tensor, kernel: Tensor) -> Tensor:
    axes, window = call.attributes["convolution"], call.attributes.get("window", [])
    if any(max(one["base_dilation"], 1) != 1 for one in window):
        raise HloError("no torch form for a convolution with a dilated base")

    def first(name: str) -> int:
        return (axes[name] or [0])[0]

    x = x.permute([first("input_batch"), first("input_feature"), *axes["input_spatial"]])
    kernel = kernel.permute([first("kernel_output"), first("kernel_input"), *axes["kernel_spatial"]])
    for number, one in enumerate(window):
        low, high = max(one["low"], 0), max(one["high"], 0)
        if low or high:
            edges = [0, 0] * (len(window) - 1 - number) + [low, high]
            x = torch.nn.functional.pad(x, edges)
        cut = -min(one["low"], 0), -min(one["high"], 0)
        if any(cut):
            x = x.narrow(2 + number, cut[0], x.shape[2 + number] - sum(cut))
    run = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[
        len(window) - 1
    ]
    result = run(
        x, kernel, stride=[max(one["stride"], 1) for one in window],
        dilation=[max(one["window_dilation"], 1) for one in window],
        groups=max(call.attributes.get("feature_group_count", 1), 1),
    )  # fmt: skip
    placed = [first("output_batch"), first("output_feature"), *axes["output_spatial"]]
    return result.permute([placed.index(axis) for axis in range(len(placed))])


def _divide(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _logical(on_bool: Callable[..., Tensor], on_bits: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *x: on_bool(*x) if x[0].dtype == torch.bool else on_bits(*x)


COMPARISONS = {"EQ": torch.eq, "NE": torch.ne, "LT": torch.lt, "LE": torch.le, "GT": torch.gt, "GE": torch.ge}
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs, "ceil": torch.ceil, "cosine": torch.cos, "erf": torch.erf, "exponential": torch.exp,
    "exponential-minus-one": torch.expm1, "floor": torch.floor, "log": torch.log, "log-plus-one": torch.log1p,
    "logistic": torch.sigmoid, "negate": torch.neg, "round-nearest-even": torch.round, "rsqrt": torch.rsqrt,
    "sign": torch.sign, "sine": torch.sin, "sqrt": torch.sqrt, "tan": torch.tan, "tanh": torch.tanh,
    "not": _logical(torch.logical_not, torch.bitwise_not), "copy": torch.clone,
}  # fmt: skip
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "subtract": torch.sub, "multiply": torch.mul, "divide": _divide, "power": torch.pow,
    "remainder": torch.fmod, "maximum": torch.maximum, "minimum": torch.minimum,
    "and": _logical(torch.logical_and, torch.bitwise_and), "or": _logical(torch.logical_or, torch.bitwise_or),
    "xor": _logical(torch.logical_xor, torch.bitwise_xor), "shift-left": torch.bitwise_left_shift,
    "shift-right-arithmetic": torch.bitwise_right_shift,
}  # fmt: skip


def _plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda call, *operands: function(*operands)


def _tuple(call: Call, *values: Tensor) -> Sequence[Tensor]:
    return values


OPERATIONS: dict[str, Callable[..., Any]] = {
    **{opcode: _plain(function) for opcode, function in (UNARY | BINARY).items()},
    "parameter": _tuple, "iota": _iota, "broadcast": _broadcast, "slice": _slice,
    "pad": _pad, "dot": _dot, "reduce": _reduce, "select": _select, "gather": _gather, "tuple": _tuple,
    "convolution": _convolution, "dynamic-slice": _dynamic_slice,
    "dynamic-update-slice": _dynamic_update_slice,
    "constant": lambda call: call.graph.constants[call.instruction.id].to(call.device),
    "reshape": lambda call, x: x.reshape(call.shape),
    "transpose": lambda call, x: x.permute(call.axes),
    "convert": lambda call, x: x.to(call.dtype),
    "reverse": lambda call, x: torch.flip(x, call.axes),
    "concatenate": lambda call, *parts: torch.cat(parts, call.axes[0] if call.axes else 0),
    "compare": lambda call, x, y: COMPARISONS[call.attributes["direction"]](x, y),
    "get-tuple-element": lambda call, parts: parts[call.instruction.tuple_index],
}  # fmt: skip
