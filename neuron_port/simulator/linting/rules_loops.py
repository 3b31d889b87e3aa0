"""Rules about hardware loops and registers, and about programs that run on two cores."""

from __future__ import annotations

import ast

from neuron_port.simulator.linting.report import Report
from neuron_port.simulator.linting.source import FunctionCode

_LOOPS = {"nki.language.fori_loop": 2, "nki.language.while_loop": 1}  # position of the body function
_NUMBER_BUILTINS = frozenset({"int", "float", "bool", "range", "abs", "min", "max", "divmod", "round", "str"})
_SYNCHRONISING = frozenset({"nki.isa.core_barrier", "nki.isa.sendrecv"})


def check(report: Report) -> None:
    """Loops first: they say which names are registers."""
    for code in report.kernel.functions:
        _check_loop_calls(report, code)
        _check_deprecated_loops(report, code)
        _check_no_reorder(report, code)
    for code in report.kernel.functions:
        _check_induction(report, code)
        _check_registers(report, code)
        _check_divergence(report, code)


def _check_loop_calls(report: Report, code: FunctionCode) -> None:
    for call in code.of(ast.Call):
        name = report.name(call.func, code)
        if name not in _LOOPS:
            continue
        body = report.facts.argument(call, _LOOPS[name], "body_fun")
        function = _function_of(report, body, code)
        if function is not None:
            parameters = function.parameters()
            if parameters and name == "nki.language.fori_loop":
                report.facts.dynamic_loop_variables(function).add(parameters[0].arg)
            _check_body(report, name, function)
        step = report.facts.argument(call, 3, "step") if name == "nki.language.fori_loop" else None
        size = report.facts.integer(step, code)
        if step is not None and ((size is not None and size <= 0) or report.facts.is_register(step, code)):
            report.add(
                "E18",
                step,
                f"step={ast.unparse(step)} of nl.fori_loop",
                "a positive integer known at compile time; the loop only counts up",
            )


def _function_of(report: Report, body: ast.expr | None, code: FunctionCode) -> FunctionCode | None:
    if isinstance(body, ast.Lambda):
        return next((one for one in report.source.functions if one.node is body), None)
    if not isinstance(body, ast.Name):
        return None
    owner = code.scope_of(body.id)
    return owner.functions.get(body.id) if owner is not None else None


def _check_body(report: Report, name: str, function: FunctionCode) -> None:
    returned = [
        node for node in function.of(ast.Return) if node.value is not None and not _is_none(node.value)
    ]
    if name == "nki.language.fori_loop":
        for statement in returned:
            report.add(
                "E18",
                statement,
                f"`{function.name}`, the body of nl.fori_loop, returns a value",
                "return nothing; keep running values in SBUF or HBM tensors allocated before the loop",
            )
    elif not returned and not isinstance(function.node, ast.Module | ast.Lambda):
        report.add(
            "E18",
            function.node,
            f"`{function.name}`, the body of nl.while_loop, does not return the condition of the next round",
            "return the register: nisa.register_load(r, condition); return r",
        )


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _check_deprecated_loops(report: Report, code: FunctionCode) -> None:
    for loop in code.of(ast.For):
        if _is_dynamic_range(report, loop, code):
            report.add(
                "W08",
                loop,
                "`for ... in nl.dynamic_range` is deprecated since 0.6",
                "def body(i): ...; nl.fori_loop(start, stop, body, step)",
            )
    for while_loop in code.of(ast.While):
        if report.facts.is_register(while_loop.test, code):
            register = ast.unparse(while_loop.test)
            report.add(
                "W08",
                while_loop,
                f"`while {register}` over a register is deprecated since 0.6",
                f"def body(r): ...; return r; nl.while_loop({register}, body)",
            )


def _is_dynamic_range(report: Report, loop: ast.For, code: FunctionCode) -> bool:
    return (
        isinstance(loop.iter, ast.Call) and report.name(loop.iter.func, code) == "nki.language.dynamic_range"
    )


def _check_no_reorder(report: Report, code: FunctionCode) -> None:
    """Dynamic loops below `with nl.no_reorder()`, in the block itself or in functions it calls."""
    for block in code.of(ast.With):
        for item in block.items:
            called = item.context_expr.func if isinstance(item.context_expr, ast.Call) else item.context_expr
            if report.name(called, code) != "nki.language.no_reorder":
                continue
            loop = _dynamic_loop_below(report, block, code, set())
            if loop is not None:
                report.add(
                    "E18",
                    block,
                    f"nl.no_reorder around the dynamic loop of line {loop}",
                    "put the no_reorder block inside the loop's body",
                )


def _dynamic_loop_below(
    report: Report, root: ast.AST, code: FunctionCode, seen: set[FunctionCode]
) -> int | None:
    for node in ast.walk(root):
        if isinstance(node, ast.For) and _is_dynamic_range(report, node, code):
            return node.lineno
        if isinstance(node, ast.While) and report.facts.is_register(node.test, code):
            return node.lineno
        if not isinstance(node, ast.Call):
            continue
        if report.name(node.func, code) in _LOOPS:
            return node.lineno
        called = _function_of(report, node.func, code)
        if called is not None and called not in seen:
            seen.add(called)
            found = _dynamic_loop_below(report, called.node, called, seen)
            if found is not None:
                return found
    return None


def _check_induction(report: Report, code: FunctionCode) -> None:
    """The variable of a hardware loop is frozen."""
    variables = report.facts.dynamic_loop_variables(code)
    if not variables:
        return
    cure = "keep another register for the changing value: other = nisa.register_alloc(0)"
    for call in code.of(ast.Call):
        name = report.name(call.func, code)
        if name in ("nki.isa.register_move", "nki.isa.register_load"):
            dst = report.facts.argument(call, 0, "dst")
            if isinstance(dst, ast.Name) and dst.id in variables:
                report.add("E18", call, f"`{dst.id}` is the loop variable, and {name[4:]} writes it", cure)
    targets = [target for node in code.of(ast.Assign) for target in node.targets]
    targets += [node.target for node in code.of(ast.AugAssign)]
    for target in targets:
        if isinstance(target, ast.Name) and target.id in variables:
            report.add("E18", target, f"`{target.id}` is the loop variable, and this line assigns it", cure)


def _check_registers(report: Report, code: FunctionCode) -> None:
    """Registers have no value while the kernel is compiled."""
    facts = report.facts
    cure = "compute on the device: nisa.register_store to a tile, instructions on it, nisa.register_load back"
    tests = [node.test for node in code.of(ast.If)]
    tests += [node.test for node in code.of(ast.IfExp)] + [node.test for node in code.of(ast.Assert)]
    for test in tests:
        register = _register_in_test(report, test, code)
        if register is not None:
            report.add(
                "E23",
                test,
                f"`{register}` is a register: its value is unknown when this condition is decided",
                "choose on the device: nisa.select_reduce, a mask, or nl.while_loop with the register",
            )
    for operation in code.of(ast.BinOp):
        for side in (operation.left, operation.right):
            if facts.is_register(side, code):
                report.add(
                    "E23",
                    operation,
                    f"`{ast.unparse(operation)}` computes with the register `{ast.unparse(side)}`",
                    cure,
                )
    for call in code.of(ast.Call):
        if (
            isinstance(call.func, ast.Name)
            and call.func.id in _NUMBER_BUILTINS
            and code.scope_of(call.func.id) is None
        ):
            for value in call.args:
                if facts.is_register(value, code):
                    instead = "nl.fori_loop(0, register, body)" if call.func.id == "range" else cure
                    report.add(
                        "E23",
                        call,
                        f"`{ast.unparse(call)}` needs a Python number, `{ast.unparse(value)}` is a register",
                        instead,
                    )


def _register_in_test(report: Report, test: ast.expr, code: FunctionCode) -> str | None:
    parts: list[ast.expr] = [test]
    while parts:
        part = parts.pop()
        if isinstance(part, ast.BoolOp):
            parts += part.values
        elif isinstance(part, ast.UnaryOp):
            parts.append(part.operand)
        elif isinstance(part, ast.Compare):
            if not any(_is_none(side) for side in part.comparators):
                parts += [part.left, *part.comparators]
        elif report.facts.is_register(part, code):
            return ast.unparse(part)
    return None


def _check_divergence(report: Report, code: FunctionCode) -> None:
    """A barrier under `if nl.program_id(0) == 0:` that the other core never reaches."""
    for branch in code.of(ast.If):
        if not _asks_program_id(report, branch.test, code):
            continue
        counts = [_synchronisations(report, side, code) for side in (branch.body, branch.orelse)]
        if len(counts[0]) != len(counts[1]):
            call = (counts[0] or counts[1])[0]
            report.add(
                "H08",
                call,
                f"{ast.unparse(call.func)} under `if {ast.unparse(branch.test)}`: one core reaches it, the other does "
                "not, and waits for ever",
                "call it on both cores, outside of the branch",
            )


def _asks_program_id(report: Report, test: ast.expr, code: FunctionCode) -> bool:
    for node in ast.walk(test):
        values = report.facts.values(node, code) if isinstance(node, ast.Name) else [(node, code)]
        for value, owner in values:
            if isinstance(value, ast.Call) and report.name(value.func, owner) == "nki.language.program_id":
                return True
    return False


def _synchronisations(report: Report, body: list[ast.stmt], code: FunctionCode) -> list[ast.Call]:
    return [
        node
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and report.name(node.func, code) in _SYNCHRONISING
    ]
