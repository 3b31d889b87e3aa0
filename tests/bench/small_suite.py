"""A suite of one or two tiny tasks in a folder, with scripts: a wrong kernel, then a right one."""

from __future__ import annotations

from pathlib import Path

from neuron_port.bench.suite import BenchTask, load_suite

TASK = '''
"""{summary} Sizes: T = tokens, H = hidden."""

from neuron_port.bench.suite import described
from neuron_port.recipe import Case, Size


def reference(x):
    """{summary}"""
    return {formula}


def inputs(sizes, draw):
    """x [T, H]."""
    return (draw.normal((sizes["T"], sizes["H"])),)


TASK = described(
    __file__,
    name="{name}",
    summary="{summary}",
    schema="(Tensor x) -> Tensor",
    layout={{"x": "[T, H]", "return": "[T, H]"}},
    reference=reference,
    inputs=inputs,
    dtypes=("float32",),
    sizes={{"T": Size(least=1, most=20), "H": Size(least=1, most=24)}},
    cases=(
        Case(name="small", kind="ordinary", sizes={{"T": 4, "H": 8}}),
        Case(name="long", kind="tail", sizes={{"T": 17, "H": 24}}),
    ),
)
'''
KERNEL = '''import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def {name}(x):
    """{summary} x [T, H] @ HBM. Returns [T, H]."""
    tokens, hidden = x.shape
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    x_sbuf = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_sbuf, src=x)
    nisa.tensor_scalar(dst=x_sbuf, data=x_sbuf, op0=nl.multiply, operand0={factor}, op1=nl.add, operand1={added})
    nisa.dma_copy(dst=out, src=x_sbuf)
    return out
'''
REPLY = """---
scripted: written by hand for tests; no language model wrote this
purpose: {purpose}
mistake: {mistake}
---
Here is the kernel.

```python
{kernel}```
"""
PLAN = """---
scripted: written by hand for tests; no language model wrote this
purpose: plan
mistake: no plan at all
---
One tile is enough.
"""


def write_line(folder: Path, name: str = "line", factor: float = 3.0, added: float = 1.0) -> None:
    """The task `factor * x + added`, whose script forgets the addition first."""
    summary = f"Each element times {factor}, plus {added}."
    _write(
        folder / name / "task.py", TASK.format(name=name, summary=summary, formula=f"{factor} * x + {added}")
    )
    right = KERNEL.format(name=name, summary=summary, factor=factor, added=added)
    wrong = KERNEL.format(name=name, summary=summary, factor=factor, added=0.0)
    _write(folder / name / "golden.py", right)
    _write(folder / name / "source.py", "# a GPU kernel that computes factor * x + added\n")
    _write(folder / name / "scripted" / "1-plan.md", PLAN)
    for number, (purpose, mistake, kernel) in enumerate(
        [("draft", "the addition is forgotten", wrong), ("repair", "none", right)], start=2
    ):
        text = REPLY.format(purpose=purpose, mistake=mistake, kernel=kernel)
        _write(folder / name / "scripted" / f"{number}-{purpose}.md", text)


def write_echo(folder: Path, name: str = "echo") -> None:
    """A task that its own input solves."""
    write_line(folder, name, factor=1.0, added=0.0)


def line_tasks(folder: Path) -> tuple[BenchTask, ...]:
    """A suite of one task."""
    write_line(folder)
    return load_suite(folder=folder)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
