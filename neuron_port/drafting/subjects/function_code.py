"""Prints the `recipe.py` of a draft that serves no layer: a function of the user's, or a task that a file defines."""

from __future__ import annotations

from neuron_port.drafting.subjects.recipe_pieces import (
    Problem,
    case_lines,
    flops_code,
    inputs_code,
    python,
    recipe_lines,
    text,
)
from neuron_port.task import KernelTask

_HEAD = '''"""{page}"""

from __future__ import annotations

'''
_BIND = '''

def bind(call: Any) -> Binding | None:
    """Serve no layer: the kernel is for a function, not for a model's layer."""
    return None


def forward(operator: Any, weights: Any, attributes: Any, *args: Any) -> Any:
    """Call the operator on its own tensors."""
    return operator(*args, **attributes)


'''
_DELEGATED = '''@functools.cache
def _task() -> Any:
    """`{variable}` of reference.py, loaded when it is first needed: it imports torch."""
    path = Path(__file__).with_name("reference.py")
    spec = importlib.util.spec_from_file_location(f"{{__name__}}.reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.{variable}


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """Those of `{variable}`."""
    return _task().inputs(sizes, draw)


def flops(*shapes: tuple[int, ...]) -> int:
    """Those of `{variable}`; 0 where it does not say."""
    count = _task().flops
    return count(*shapes) if count else 0


'''


def function_recipe_text(problem: Problem, *, name: str, summary: str, place: str) -> str:
    """`recipe.py` for a function of the file `place`."""
    interface = ["Binding", "Case", "Recipe", *(["Size"] if problem.free else [])]
    interface += ["Tolerance"] if problem.reduction_length else []
    page = f"The function {name} of {place}: drafted for itself, it serves no layer."
    lines = [_HEAD.format(page=page), "from typing import Any\n\n"]
    lines.append(f"from neuron_port.recipe import {', '.join(interface)}\n")
    lines.append(_BIND)
    body = [*inputs_code(problem), "", "", *flops_code(problem), "", ""]
    body += recipe_lines(problem, name=name, summary=summary, operation="function", sequence_axes=())
    return "".join(lines) + "\n".join(body) + "\n"


def delegating_recipe_text(task: KernelTask, *, variable: str) -> str:
    """`recipe.py` for a `KernelTask` that stands in reference.py."""
    tolerance = (
        f"reduction_length={python(task.tolerance.reduction_length)}, r_ratio={task.tolerance.r_ratio!r}"
    )
    page = f"The task {task.name}: drafted for itself, it serves no layer."
    lines = [_HEAD.format(page=page)]
    lines.append(
        "import functools\nimport importlib.util\nimport sys\nfrom pathlib import Path\nfrom typing import Any\n\n"
    )
    interface = ["Binding", "Case", "Recipe", *(["Size"] if task.sizes else []), "Tolerance"]
    lines.append(f"from neuron_port.recipe import {', '.join(interface)}\n")
    lines.append(_BIND)
    lines.append(_DELEGATED.format(variable=variable))
    body = ["RECIPE = Recipe(", f"    name={text(task.name)},", f"    summary={text(task.summary)},"]
    body += [
        f"    schema={text(task.schema)},",
        '    operation="function",',
        "    bind=bind,",
        "    forward=forward,",
    ]
    body += [
        "    sequence_axes=(),",
        "    inputs=inputs,",
        "    flops=flops,",
        f"    tolerance=Tolerance({tolerance}),",
    ]
    if task.sizes:
        body.append("    sizes={")
        for name, size in task.sizes.items():
            multiple = f", multiple={size.multiple}" if size.multiple != 1 else ""
            body.append(f"        {text(name)}: Size(least={size.least}, most={size.most}{multiple}),")
        body.append("    },")
    if task.dtypes != ("float32", "bfloat16"):
        body.append(f"    dtypes={python(tuple(task.dtypes))},")
    body.append("    cases=(")
    body += [f"        {line}" for case in task.cases for line in case_lines(case)]
    return "".join(lines) + "\n".join([*body, "    ),", ")"]) + "\n"
