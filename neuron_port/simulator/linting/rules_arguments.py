"""Rules about calls of nki functions: which arguments they take, which must be there, and of what kind."""

from __future__ import annotations

import ast
import difflib

from neuron_port.simulator.linting.renames import HARDWARE_LIMITS, REMOVED_PARAMETERS
from neuron_port.simulator.linting.report import Report
from neuron_port.simulator.linting.signatures import ENUM_MEMBERS, ENUM_PARAMETERS, Signature, signatures
from neuron_port.simulator.linting.source import FunctionCode

_BUFFERS = ("sbuf", "psum", "hbm", "private_hbm", "shared_hbm")
_ELEMENTWISE = (
    "add subtract multiply maximum minimum abs_max abs_min power equal not_equal less less_equal greater "
    "greater_equal bitwise_and bitwise_or bitwise_xor left_shift right_shift logical_and logical_or logical_xor"
)
# Results of 0.1 instructions that are results in 0.6 too.
_RETURN_VALUES = frozenset(
    {
        "nki.isa.register_alloc",
        "nki.isa.get_nc_version",
        "nki.isa.get_nc_sub_version",
        "nki.isa.VirtualRegister",
    }
)


def check(report: Report) -> None:
    """Every call of kernel code that goes to nki."""
    for code in report.kernel.functions:
        for call in code.of(ast.Call):
            name = report.name(call.func, code)
            if name is None or name not in signatures():
                continue
            signature = signatures()[name]
            _check_parameters(report, call, name, signature, code)
            _check_kinds(report, call, signature, name)
            _check_language_limits(report, call, name, code)


def _short(name: str) -> str:
    module, _, function = name.rpartition(".")
    return {"nki.isa": "nisa.", "nki.language": "nl."}.get(module, module + ".") + function


def _check_keywords(report: Report, call: ast.Call, name: str, signature: Signature) -> bool:
    """Keywords that no version takes, or no version any longer; whether there is one of the latter."""
    function = name.rpartition(".")[2]
    is_instruction = name.startswith("nki.isa.")
    old_style = False
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in signature.parameters:
            continue
        removed = REMOVED_PARAMETERS.get((function, keyword.arg))
        if removed is None and is_instruction:
            removed = REMOVED_PARAMETERS.get(("*", keyword.arg))
        if removed is None and keyword.arg == "mask":
            removed = REMOVED_PARAMETERS["*", "mask"]
        if removed is not None:
            rule, cure = removed
            old_style = True
            report.malformed.add(call)
            # AWS's nki-library passes dtype= beside dst in one place; the value can only repeat what dst says.
            harmless = keyword.arg == "dtype" and any(other.arg == "dst" for other in call.keywords)
            report.add(
                rule,
                keyword,
                f"{_short(name)} no longer takes `{keyword.arg}=`",
                cure,
                severity="warning" if harmless else None,
            )
        else:
            report.add(
                "E16",
                keyword,
                f"{_short(name)} takes no `{keyword.arg}=`",
                _nearest(keyword.arg, signature),
            )
    return old_style


def _check_parameters(
    report: Report, call: ast.Call, name: str, signature: Signature, code: FunctionCode
) -> None:
    """Unknown, repeated and missing arguments."""
    is_instruction = name.startswith("nki.isa.")
    old_style = _check_keywords(report, call, name, signature)
    if any(isinstance(value, ast.Starred) for value in call.args) or any(
        k.arg is None for k in call.keywords
    ):
        return
    if is_instruction and _is_written_for_its_result(call, name, code):
        report.add(
            "E10",
            call,
            f"the result of {_short(name)} is used as a tensor; instructions write dst and return no tensor",
            f"{_short(name)}(dst=tile, ...)",
        )
        report.malformed.add(call)
        return
    _check_places(report, call, name, signature, old_style)


def _check_places(report: Report, call: ast.Call, name: str, signature: Signature, old_style: bool) -> None:
    """Too many, misplaced, repeated and missing arguments."""
    given = {keyword.arg for keyword in call.keywords}
    positional = signature.parameters[: len(call.args)]
    repeated = [parameter for parameter in positional if parameter in given]
    if len(call.args) > len(signature.parameters):
        report.add(
            "E16",
            call,
            f"{_short(name)} takes {len(signature.parameters)} arguments, {len(call.args)} are given",
            f"its parameters are {', '.join(signature.parameters)}",
        )
        report.malformed.add(call)
    elif (
        name == "nki.isa.dma_compute"
        and len(call.args) > 2
        and isinstance(call.args[2], ast.List | ast.Tuple)
    ):
        report.malformed.add(call)
        report.add(
            "E16",
            call,
            f"the third argument of nisa.dma_compute is reduce_op, `{ast.unparse(call.args[2])}` stands there",
            "dma_compute(dst, srcs, reduce_op, scales=None, unique_indices=True)",
        )
    elif repeated:
        report.malformed.add(call)
        _report_repeated(report, call, name, signature, repeated)
    else:
        missing = [
            p for p in signature.parameters[: signature.required] if p not in positional and p not in given
        ]
        if missing:
            report.malformed.add(call)
            _report_missing(report, call, name, signature, missing, old_style)


def _report_repeated(
    report: Report, call: ast.Call, name: str, signature: Signature, repeated: list[str]
) -> None:
    if repeated[0] == "dst":
        report.add(
            "E10",
            call,
            f"dst of {_short(name)} is not the first argument: `{ast.unparse(call.args[0])}` stands there",
            "put dst first, or name every argument",
        )
    elif name == "nki.isa.affine_select" and len(call.args) > 2:
        report.add(
            "E16",
            call,
            "offset of nisa.affine_select is no longer the third positional argument",
            "affine_select(dst, pattern, channel_multiplier, on_true_tile, on_false_value, offset=offset)",
        )
    else:
        report.add(
            "E16",
            call,
            f"{_short(name)} gets `{repeated[0]}` twice, by position and by name",
            f"the order is {', '.join(signature.parameters)}",
        )


def _report_missing(
    report: Report, call: ast.Call, name: str, signature: Signature, missing: list[str], old_style: bool
) -> None:
    first_is_dst = signature.parameters[0] == "dst"
    named_others = {keyword.arg for keyword in call.keywords} & set(signature.parameters)
    if first_is_dst and (
        missing == ["dst"] or (missing and not call.args and named_others) or len(missing) == 1 or old_style
    ):
        first = f": `{ast.unparse(call.args[0])}` would be taken for it" if call.args else ""
        if name.startswith("nki.isa."):
            report.add(
                "E10",
                call,
                f"{_short(name)} has no dst{first}"
                if "dst" in missing or call.args
                else f"{_short(name)} lacks `{missing[0]}`",
                f"the order is {', '.join(signature.parameters[: signature.required])}",
            )
            return
    report.add(
        "E16",
        call,
        f"{_short(name)} lacks {', '.join(f'`{parameter}`' for parameter in missing)}",
        f"its parameters are {', '.join(signature.parameters)}",
    )


def _nearest(parameter: str, signature: Signature) -> str:
    close = difflib.get_close_matches(parameter, signature.parameters, n=1)
    every = f"its parameters are {', '.join(signature.parameters)}"
    return f"did you mean `{close[0]}=`? {every}" if close else every


def _is_written_for_its_result(call: ast.Call, name: str, code: FunctionCode) -> bool:
    """Whether a 0.1-style instruction: `t[...] = nisa.f(x)`, or f(x) as an operand or argument."""
    if name in _RETURN_VALUES:
        return False
    parent = code.parents.get(call)
    if isinstance(parent, ast.Assign):
        return any(isinstance(target, ast.Subscript) for target in parent.targets)
    if isinstance(parent, ast.AugAssign | ast.BinOp | ast.Subscript):
        return True
    if isinstance(parent, ast.keyword):
        return parent.arg in (
            "value",
            "data",
            "src",
            "moving",
            "stationary",
            "data1",
            "data2",
            "on_true_tile",
        )
    return False


def _check_kinds(report: Report, call: ast.Call, signature: Signature, name: str) -> None:
    """Enum members given as integers, buffers and enum members given as strings."""
    pairs = list(zip(signature.parameters, call.args, strict=False))
    pairs += [(keyword.arg, keyword.value) for keyword in call.keywords if keyword.arg]
    for parameter, value in pairs:
        if not isinstance(value, ast.Constant):
            continue
        if parameter == "buffer" and isinstance(value.value, str):
            known = value.value if value.value in _BUFFERS else "sbuf"
            report.add(
                "E08",
                value,
                f"the buffer of {_short(name)} is the string {value.value!r}",
                f"buffer=nl.{known}",
            )
        elif parameter in ENUM_PARAMETERS and parameter in signature.parameters:
            _check_enum(report, value, parameter, name)


def _check_enum(report: Report, value: ast.Constant, parameter: str, name: str) -> None:
    members = ENUM_MEMBERS[parameter]
    if isinstance(value.value, int):
        report.add(
            "E09",
            value,
            f"{parameter}={value.value} of {_short(name)} is an integer",
            f"a member of {ENUM_PARAMETERS[parameter]}: {', '.join(members)}",
        )
    elif isinstance(value.value, str) and (parameter != "perf_mode" or value.value not in members):
        report.add(
            "E09",
            value,
            f"{parameter}={value.value!r} of {_short(name)} is a string",
            f"a member of {ENUM_PARAMETERS[parameter]}: {', '.join(members)}",
        )


def _check_language_limits(report: Report, call: ast.Call, name: str, code: FunctionCode) -> None:
    """`nl` functions that the simulator may run and the hardware cannot."""
    facts = report.facts
    if name in HARDWARE_LIMITS:
        why, cure = HARDWARE_LIMITS[name]
        report.add("H05", call, f"{_short(name)} simulates but does not compile: {why}", cure)
    elif name == "nki.language.power" and _is_number(facts.argument(call, 1, "y")):
        report.add(
            "H05",
            call,
            "nl.power with a number as exponent does not compile",
            "make the exponent a tile of x's shape: nl.full",
        )
    elif name == "nki.language.random_seed" and _is_number(facts.argument(call, 0, "seed")):
        report.add(
            "H05",
            call,
            "nl.random_seed of a number does not compile",
            "nl.random_seed(nl.full((1, 1), 42, dtype=nl.int32))",
        )
    elif name == "nki.language.rsqrt":
        tensor = facts.tensor(facts.argument(call, 0, "x"), code)
        if tensor is not None and tensor.buffer == "psum":
            report.add(
                "H05",
                call,
                "nl.rsqrt reads PSUM, which GpSimd cannot",
                "nisa.activation(dst=..., op=nl.rsqrt, data=...)",
            )
    elif name == "nki.language.matmul":
        transposed = facts.argument(call, 2, "transpose_x")
        if not (isinstance(transposed, ast.Constant) and transposed.value is True):
            given = (
                "without transpose_x" if transposed is None else f"with transpose_x={ast.unparse(transposed)}"
            )
            report.add(
                "H07",
                call,
                f"nl.matmul {given} does not compile",
                "lay x out as [K, M] and write transpose_x=True",
            )
    elif name.removeprefix("nki.language.") in _ELEMENTWISE.split():
        _check_shapes(report, call, name, code)


def _check_shapes(report: Report, call: ast.Call, name: str, code: FunctionCode) -> None:
    facts = report.facts
    x, y = (facts.tensor(facts.argument(call, i, n), code) for i, n in enumerate("xy"))
    if x is None or y is None or x.shape is None or y.shape is None:
        return
    known = len(x.shape) == len(y.shape) and None not in x.shape and None not in y.shape
    if known and x.shape != y.shape:
        report.add(
            "H06",
            call,
            f"{_short(name)} of shapes {x.shape} and {y.shape}: nothing is broadcast",
            "broadcast the view: y.broadcast(dim, size), or nisa.tensor_scalar with a [P, 1] operand",
        )


def _is_number(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and isinstance(value.value, int | float)
