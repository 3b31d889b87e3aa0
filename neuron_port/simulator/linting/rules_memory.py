"""Rules about what instructions do to memory, where the allocations in the text show it."""

from __future__ import annotations

import ast
import math

from neuron_port.simulator.linting.facts import Tensor
from neuron_port.simulator.linting.report import Report
from neuron_port.simulator.linting.source import FunctionCode

_INTEGERS = frozenset({"int8", "int16", "int32", "uint8", "uint16", "uint32"})
_PERMUTATIONS = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}
# Instruction -> {operand: (position, buffers it may be in)}.
_SBUF, _PSUM, _ON_CHIP = frozenset({"sbuf"}), frozenset({"psum"}), frozenset({"sbuf", "psum"})
_OPERANDS: dict[str, dict[str, tuple[int, frozenset[str]]]] = {
    "nc_matmul": {"dst": (0, _PSUM), "stationary": (1, _SBUF), "moving": (2, _SBUF)},
    "nc_matmul_mx": {"dst": (0, _PSUM), "stationary": (1, _SBUF), "moving": (2, _SBUF)},
    "nc_transpose": {"dst": (0, _ON_CHIP), "data": (1, _ON_CHIP)},
    "tensor_copy": {"dst": (0, _ON_CHIP), "src": (1, _ON_CHIP)},
    "tensor_tensor": {"dst": (0, _ON_CHIP), "data1": (1, _ON_CHIP), "data2": (2, _ON_CHIP)},
    "tensor_scalar": {"dst": (0, _ON_CHIP), "data": (1, _ON_CHIP)},
    "scalar_tensor_tensor": {"dst": (0, _ON_CHIP), "data": (1, _ON_CHIP), "operand1": (5, _ON_CHIP)},
    "tensor_reduce": {"dst": (0, _ON_CHIP), "data": (2, _ON_CHIP)},
    "activation": {"dst": (0, _ON_CHIP), "data": (2, _ON_CHIP)},
    "activation_reduce": {"dst": (0, _ON_CHIP), "data": (2, _ON_CHIP)},
    "reciprocal": {"dst": (0, _ON_CHIP), "data": (1, _ON_CHIP)},
    "memset": {"dst": (0, _ON_CHIP)},
    "iota": {"dst": (0, _SBUF)},
    "affine_select": {"dst": (0, _SBUF), "on_true_tile": (3, _SBUF)},
    "local_gather": {"dst": (0, _SBUF), "src_buffer": (1, _SBUF), "index": (2, _SBUF)},
    "nc_n_gather": {"dst": (0, _SBUF), "data": (1, _SBUF), "indices": (2, _SBUF)},
    "tensor_partition_reduce": {"dst": (0, _SBUF), "data": (2, _SBUF)},
    "quantize_mx": {"dst": (0, _SBUF), "src": (1, _SBUF), "dst_scale": (2, _SBUF)},
    "topk": {"val_dst": (0, _SBUF), "idx_dst": (1, _SBUF), "src": (2, _SBUF)},
    "sendrecv": {"src": (0, _SBUF), "dst": (1, _SBUF)},
    "bn_stats": {"dst": (0, _ON_CHIP), "data": (1, _ON_CHIP)},
    "bn_aggr": {"dst": (0, _ON_CHIP), "data": (1, _ON_CHIP)},
    "max8": {"dst": (0, _ON_CHIP), "src": (1, _ON_CHIP)},
}
_CURES = {
    ("hbm", "chip"): "load it first: nisa.dma_copy(dst=tile_sbuf, src={shown})",
    ("psum", "sbuf"): "copy it first: nisa.tensor_copy(dst=tile_sbuf, src={shown})",
    ("sbuf", "psum"): "allocate it with buffer=nl.psum",
}


def check(report: Report) -> None:
    """Every instruction of kernel code whose operands the text shows."""
    for code in report.kernel.functions:
        for call in code.of(ast.Call):
            if call in report.malformed:
                continue
            name = report.name(call.func, code)
            if name is not None and name.startswith("nki.isa."):
                _check_instruction(report, call, name.removeprefix("nki.isa."), code)
            elif isinstance(call.func, ast.Attribute):
                _check_view(report, call, call.func, code)


def _check_instruction(report: Report, call: ast.Call, name: str, code: FunctionCode) -> None:
    if name in ("dma_copy", "dma_transpose", "dma_compute"):
        _check_dma(report, call, name, code)
    elif name == "memset":
        _check_memset(report, call, code)
    for operand, (position, allowed) in _OPERANDS.get(name, {}).items():
        value = report.facts.argument(call, position, operand)
        tensor = report.facts.tensor(value, code)
        if value is None or tensor is None or tensor.buffer is None or tensor.buffer in allowed:
            continue
        shown = ast.unparse(value)
        kind = "hbm" if tensor.buffer.endswith("hbm") else tensor.buffer
        cure = _CURES.get(
            (kind, "chip" if kind == "hbm" else min(allowed)), "allocate it with buffer=nl.sbuf"
        )
        if operand.endswith("dst") and kind == "hbm":
            cure = f"write a tile on the chip and store it: nisa.dma_copy(dst={shown}, src=tile_sbuf)"
        report.add(
            "E26",
            value,
            f"{operand} of nisa.{name} is `{shown}` in {tensor.buffer}, must be in {' or '.join(sorted(allowed))}",
            cure.format(shown=shown),
        )


def _check_dma(report: Report, call: ast.Call, name: str, code: FunctionCode) -> None:
    facts = report.facts
    dst, src = facts.argument(call, 0, "dst"), facts.argument(call, 1, "src")
    tensors = {"dst": facts.tensor(dst, code), "src": facts.tensor(src, code)}
    for operand, tensor in tensors.items():
        value = dst if operand == "dst" else src
        if tensor is not None and tensor.buffer == "psum" and value is not None:
            shown = ast.unparse(value)
            report.add(
                "E15",
                value,
                f"{operand} of nisa.{name} is `{shown}` in psum; DMA engines do not reach PSUM",
                f"nisa.tensor_copy between `{shown}` and an SBUF tile, and DMA the tile",
            )
    mode = facts.argument(call, None, "dge_mode")
    hardware = mode is not None and report.name(mode, code) == "nki.isa.dge_mode.hwdge"
    dtypes = [tensor.dtype if tensor is not None else None for tensor in tensors.values()]
    if name == "dma_copy" and hardware and None not in dtypes and dtypes[0] != dtypes[1]:
        report.add(
            "E15",
            call,
            f"nisa.dma_copy with dge_mode.hwdge from {dtypes[1]} to {dtypes[0]}: hwdge moves raw bytes",
            f"one dtype for both: src.view(nl.{dtypes[0]}) to reinterpret, or dge_mode.swdge to convert",
        )
    if name == "dma_transpose":
        _check_transpose(report, call, tensors["dst"], tensors["src"], code)


def _check_transpose(
    report: Report, call: ast.Call, dst: Tensor | None, src: Tensor | None, code: FunctionCode
) -> None:
    given = report.facts.argument(call, 2, "axes")
    axes = report.facts.shape(given, code)
    if axes is not None and None not in axes and axes != _PERMUTATIONS.get(len(axes)):
        report.add(
            "E21",
            call,
            f"axes of nisa.dma_transpose are {axes}",
            "the permutations are (1, 0), (2, 1, 0) and (3, 1, 2, 0)",
        )
        return
    if dst is None or src is None or dst.shape is None or src.shape is None:
        return
    permutation = axes or _PERMUTATIONS.get(len(src.shape))
    if permutation is None or len(permutation) != len(src.shape):
        return
    wanted = tuple(src.shape[axis] for axis in permutation if axis is not None)
    fits = len(wanted) == len(dst.shape) and all(
        one is None or other is None or one == other for one, other in zip(wanted, dst.shape, strict=False)
    )
    if not fits:
        report.add(
            "E21",
            call,
            f"dst of nisa.dma_transpose has shape {_shape(dst.shape)}, the transposed src has {_shape(wanted)}",
            f"allocate dst with shape {_shape(wanted)}",
        )


def _check_memset(report: Report, call: ast.Call, code: FunctionCode) -> None:
    facts = report.facts
    value = facts.argument(call, 1, "value")
    tensor = facts.tensor(facts.argument(call, 0, "dst"), code)
    if value is None or tensor is None or tensor.dtype is None:
        return
    number = _number(value)
    if number is None:
        return
    if tensor.dtype in _INTEGERS and isinstance(number, float):
        cure = f"value={int(number)}" if number == int(number) else "an integer, or a float tile"
        report.add("E14", value, f"nisa.memset writes the float {number} to a tile of {tensor.dtype}", cure)
    elif tensor.dtype.endswith("_x4") and number != 0:
        report.add(
            "E14",
            value,
            f"nisa.memset writes {number} to a tile of {tensor.dtype}; packed dtypes take 0 only",
            "load the packed values from HBM: nisa.dma_copy",
        )


def _number(value: ast.expr) -> int | float | None:
    if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub):
        number = _number(value.operand)
        return None if number is None else -number
    if (
        isinstance(value, ast.Constant)
        and isinstance(value.value, int | float)
        and not isinstance(value.value, bool)
    ):
        return value.value
    return None


def _check_view(report: Report, call: ast.Call, method: ast.Attribute, code: FunctionCode) -> None:
    if method.attr not in ("reshape", "ap", "permute"):
        return
    facts = report.facts
    tensor = facts.tensor(method.value, code)
    if tensor is None:
        return
    shown = ast.unparse(method.value)
    on_chip = tensor.buffer in ("sbuf", "psum")
    if method.attr == "reshape" and tensor.shape is not None:
        shape = facts.shape(facts.argument(call, 0, "shape"), code)
        _check_reshape(report, call, shown, tensor.shape, shape, on_chip)
    elif method.attr == "permute" and on_chip:
        dims = facts.shape(facts.argument(call, 0, "dims"), code)
        if dims and dims[0] not in (0, None):
            report.add(
                "E20",
                call,
                f"permute{_shape(dims)} of `{shown}` in {tensor.buffer} moves the partition dimension",
                "keep dims[0] == 0; nisa.nc_transpose exchanges partitions and free elements",
            )
    elif method.attr == "ap" and on_chip and tensor.whole and tensor.shape is not None:
        _check_pattern(report, call, shown, tensor.shape, code)


def _check_reshape(
    report: Report,
    call: ast.Call,
    shown: str,
    old: tuple[int | None, ...],
    new: tuple[int | None, ...] | None,
    on_chip: bool,
) -> None:
    if not new or not old:
        return
    counts = _size(old), _size(new)
    if None not in counts and -1 not in new and counts[0] != counts[1]:
        report.add(
            "E20",
            call,
            f"reshape of `{shown}` from {_shape(old)} to {_shape(new)} changes the element count from "
            f"{counts[0]} to {counts[1]}",
            "reshape keeps the element count; slice first to take a part",
        )
    elif on_chip and old[0] is not None and new[0] not in (None, -1, old[0]):
        report.add(
            "E20",
            call,
            f"reshape of `{shown}` from {_shape(old)} to {_shape(new)} changes the partition dimension",
            f"keep the first dimension {old[0]}; nisa.dma_copy or nisa.nc_transpose move data between partitions",
        )


def _check_pattern(
    report: Report, call: ast.Call, shown: str, shape: tuple[int | None, ...], code: FunctionCode
) -> None:
    """On the chip the partition step is the free size: [[free elements, partitions], ...]."""
    pattern = report.facts.argument(call, 0, "pattern")
    sizes = [size for size in shape[1:] if size is not None]
    if not isinstance(pattern, ast.List) or not pattern.elts or len(sizes) != len(shape) - 1:
        return
    if any(keyword.arg == "dtype" for keyword in call.keywords):
        return
    first = report.facts.shape(pattern.elts[0], code)
    if first is None or len(first) != 2 or first[0] is None:
        return
    free = math.prod(sizes)
    if first[0] != free and first[1] != 1:
        report.add(
            "E20",
            call,
            f"the partition stride of `{shown}.ap` is {first[0]}; `{shown}` has {free} elements per partition",
            f"pattern=[[{free}, partitions], ...]",
        )


def _size(shape: tuple[int | None, ...]) -> int | None:
    known = [size for size in shape if size is not None]
    return math.prod(known) if len(known) == len(shape) else None


def _shape(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
