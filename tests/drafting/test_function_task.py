"""Functions, modules and tasks of the user's own: the shapes they are given, and one sentence for each mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from neuron_port.drafting.folder import write_draft
from neuron_port.drafting.subjects.function_task import function_task
from neuron_port.errors import UsageError
from neuron_port.parity.draw import Draw
from neuron_port.recipe import Size
from neuron_port.registry import Registry
from neuron_port.task import Source
from tests.drafting.tiny_models import provenance

FILE = '''"""Mine."""

import torch

from neuron_port.recipe import Case, Size
from neuron_port.task import KernelTask


def scaled_softmax(x, gain, scale, causal=False):
    """Softmax of scaled rows, times a gain."""
    return torch.softmax(x * scale, -1) * gain


def pick(ids, table):
    return table[ids.long()]


def halves(x):
    """The two halves of every row."""
    return x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]


def broken(x):
    return x.reshape(7, -1)


def words(x):
    return "no tensor"


def always_float32(x):
    return x.float() * 2


class Gated(torch.nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.up = torch.nn.Linear(width, 2 * width)

    def forward(self, x):
        a, b = self.up(x).chunk(2, -1)
        return torch.nn.functional.silu(a) * b


def twice(x):
    return x + x


TASK = KernelTask(
    name="doubled",
    summary="Twice.",
    schema="(Tensor x) -> Tensor",
    layout={"x": "[T, H]", "return": "[T, H]"},
    reference=twice,
    reference_text="x + x",
    inputs=lambda sizes, draw: (draw.normal((sizes["T"], sizes["H"])),),
    cases=(Case(name="a", kind="ordinary", sizes={"T": 8, "H": 32}),),
    sizes={"T": Size(least=1, most=200)},
)
NUMBER = 3
'''
SIZES = ["T=1..300", "H=96"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def refused(file: Path, name: str, **options) -> UsageError:
    with pytest.raises(UsageError) as raised:
        function_task(f"{file}:{name}", **options)
    return raised.value


def softmax(file: Path, **changes):
    options = {"inputs": ["x=TxH", "gain=H:weight"], "sizes": SIZES, "settings": ["scale=0.5"]} | changes
    return function_task(f"{file}:scaled_softmax", **options)


def test_a_function_becomes_a_task(file):
    """Schema, layout and sizes come from the signature and the options; the reference is the function itself."""
    task = softmax(file).task
    assert task.schema == "(Tensor x, Tensor gain, float scale) -> Tensor"
    assert task.layout == {"x": "[T, H]", "gain": "[H]", "return": "[T, H]"}
    assert task.sizes == {"T": Size(least=1, most=300)}
    assert task.summary == "Softmax of scaled rows, times a gain."
    assert task.tolerance.reduction_length == "H"
    assert {case.kind for case in task.cases} == {"ordinary", "tail", "stress"}
    x, gain = task.inputs({"T": 3, "H": 96}, Draw(0))
    assert (x.shape, gain.shape, x.dtype) == ((3, 96), (96,), np.float32)
    x, gain = torch.from_numpy(x), torch.from_numpy(gain)
    assert torch.equal(task.reference(x, gain, scale=0.5), torch.softmax(x * 0.5, -1) * gain)
    assert all(dict(case.attributes) == {"scale": 0.5} for case in task.cases)


def test_integers_are_bounded_by_a_size(file):
    """`:index<V` draws int32 below V, whatever the case."""
    inputs = ["ids=T:index<V", "table=VxH:weight"]
    task = function_task(f"{file}:pick", inputs=inputs, sizes=["T=1..300", "V=10", "H=32"]).task
    ids, _ = task.inputs({"T": 200, "V": 10, "H": 32}, Draw(0))
    assert (ids.dtype, ids.min() >= 0, ids.max() < 10) == (np.int32, True, True)
    assert task.layout["return"] == "[T, H]"
    assert all(case.style == "normal" for case in task.cases)


def test_two_results_and_multiples(file):
    """A tuple gives a schema with two results; sizes keep to their multiples."""
    task = function_task(f"{file}:halves", inputs=["x=TxK"], sizes=["T=2..300", "K=64..512/64"]).task
    assert task.schema == "(Tensor x) -> (Tensor, Tensor)"
    assert all(case.sizes["K"] % 64 == 0 and case.sizes["T"] >= 2 for case in task.cases)


def test_a_module_class_becomes_a_task(file):
    """A class is made with --set, its Linear weight is offered as [K, N], and the text is exported code."""
    made = function_task(f"{file}:Gated", inputs=["x=TxH"], sizes=["T=1..200", "H=32"], settings=["width=32"])
    task = made.task
    assert task.name == "gated"
    assert task.layout == {"x": "[T, H]", "up_weight": "[H, N]", "up_bias": "[N]", "return": "[T, H]"}
    assert task.sizes["T"] == Size(least=1, most=200)
    assert "functional.silu" in task.reference_text
    assert "class Gated" in task.sources[0].text


def test_a_task_in_the_file_is_taken_as_it_is(file):
    """`TASK = KernelTask(...)` keeps everything but gains the sources that are given."""
    source = Source(language="triton", text="# nothing", origin="mine", license="MIT")
    made = function_task(f"{file}:TASK", sources=[source])
    assert (made.task.name, made.task.sources) == ("doubled", (source,))


@pytest.mark.parametrize("name", ["scaled_softmax", "TASK", "Gated", "halves"])
def test_its_folder_loads_and_serves_no_layer(file, tmp_path, name):
    """The generated folder is a recipe whose reference and inputs are those of the file, and which binds nothing."""
    options = {
        "scaled_softmax": {"inputs": ["x=TxH", "gain=H"], "sizes": SIZES, "settings": ["scale=0.5"]},
        "halves": {"inputs": ["x=TxH"], "sizes": SIZES},
        "Gated": {"inputs": ["x=TxH"], "sizes": ["T=1..9", "H=64"]},
        "TASK": {},
    }[name]
    made = function_task(f"{file}:{name}", **options)
    write_draft(tmp_path / "drafts", made, "import nki\n", provenance())
    found = Registry(tmp_path / "drafts")[made.task.name]
    case = found.recipe.cases[0]
    arrays = found.recipe.inputs(case.sizes, Draw(0))
    tensors = [torch.from_numpy(array) for array in arrays]
    expected = made.task.reference(*tensors, **case.attributes)
    ours = found.reference(*tensors, **case.attributes)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert found.recipe.schema == made.task.schema
    if name != "Gated":
        assert found.recipe.bind(None) is None


@pytest.mark.parametrize(
    ("name", "options", "message", "hint"),
    [
        ("scaled_sofmax", {}, "defines no `scaled_sofmax`", "`scaled_softmax`"),
        ("NUMBER", {}, "is a `int`", "nn.Module"),
        ("scaled_softmax", {}, "needs `x`", "-i x=TxH"),
        ("scaled_softmax", {"inputs": ["x=TxH"], "sizes": SIZES}, "needs `gain`", "-i gain=TxH"),
        ("scaled_softmax", {"inputs": ["x=TxH", "gain=H"], "sizes": SIZES}, "needs `scale`", "-s scale=VALUE"),
        ("pick", {"inputs": ["ids=T:index<W", "table=8x4"], "sizes": ["T=1..9"]}, "names the size `W`", "--size W="),
        ("pick", {"inputs": ["idz=T", "table=8x4"], "sizes": ["T=1..9"]}, "no parameter `idz`", "`ids`"),
        ("broken", {"inputs": ["x=TxH"], "sizes": ["T=3", "H=5"]}, "mine.py:24: RuntimeError", "-i and --size"),
        ("words", {"inputs": ["x=TxH"], "sizes": SIZES}, "returns a `str`", "returns a tensor"),
        ("always_float32", {"inputs": ["x=TxH"], "sizes": SIZES}, "returns torch.float32", ".to(x.dtype)"),
        ("Gated", {}, "nothing says what `x` is", "-i x=TxH"),
        ("Gated", {"settings": ["width=-1"], "inputs": ["x=4"]}, "mine.py:38: RuntimeError", "-s NAME=VALUE"),
        ("words", {"inputs": ["x=T*H"]}, "Input `x=T*H` cannot be read", "NAME=TxH"),
        ("words", {"sizes": ["T=9..3"]}, "holds no number", "at most MOST"),
        ("words", {"sizes": ["T=one"]}, "cannot be read", "LEAST..MOST"),
        ("words", {"inputs": ["x=4"], "sizes": ["T=4"]}, "`T` occurs in no input", "Leave it out"),
        ("words", {"settings": ["eps"]}, "Setting `eps` cannot be read", "NAME=VALUE"),
    ],
)  # fmt: skip
def test_mistakes_are_named(file, name, options, message, hint):
    """Each mistake is one sentence with the thing, its value or its line, and a cure."""
    error = refused(file, name, **options)
    assert message in error.message
    assert hint in str(error.hint)


def test_a_file_that_fails_is_named_with_its_line(tmp_path):
    """A file that does not load is one sentence with file and line; one that is not there is named."""
    bad = tmp_path / "bad.py"
    bad.write_text("import torch\n\ntorch.nothing\n")
    assert refused(bad, "f").message.startswith(f"{bad}:3: AttributeError")
    bad.write_text("def f(:\n")
    assert f"{bad}:1: SyntaxError" in refused(bad, "f").message
    assert "No Python file at" in refused(tmp_path / "none.py", "f").message
