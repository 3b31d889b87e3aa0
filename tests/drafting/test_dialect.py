"""The dialect slice says what the simulator does: every name, signature, limit and docstring comes from it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re

import numpy as np
import pytest

from neuron_port.drafting.prompts.dialect import (
    BASICS,
    MAXIMUM_CHARACTERS,
    PRIMITIVES,
    dialect_slice,
    instruction_entry,
    instructions_for,
    language_entry,
    primitives_in,
    primitives_of,
    slice_sections,
)
from neuron_port.drafting.prompts.exemplars import recipe_functions, use_of
from neuron_port.drafting.prompts.prompting import PromptError
from neuron_port.drafting.replies.planning import Plan, Step
from neuron_port.registry import data_folder
from neuron_port.simulator import SimulatorError, load_kernel_source, run_kernel
from neuron_port.simulator.linting.catalogue import RULES
from neuron_port.simulator.linting.renames import REMOVED
from neuron_port.simulator.nki import isa, language
from neuron_port.simulator.target import GEN2, GEN3, GEN4, TARGETS
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.task import KernelTask, Source

FACES = {"nisa": isa, "nl": language, "t": NkiTensor}
ALL = tuple(PRIMITIVES)


def sections_of(primitives: tuple[str, ...], target=GEN3, **options) -> dict[str, str]:
    return slice_sections(instructions_for(primitives, target), primitives, target, **options)


@pytest.mark.parametrize("target", [GEN2, GEN3, GEN4], ids=lambda target: target.name)
def test_every_name_in_the_slice_exists(target) -> None:
    """Each nisa., nl. and t. name outside of the list of renames is found on the face of the simulator."""
    for name, text in sections_of(ALL, target).items():
        if name == "renames":
            continue
        for module, attribute in re.findall(r"\b(nisa|nl)\.([A-Za-z_][A-Za-z0-9_]*)", text):
            assert hasattr(FACES[module], attribute), f"{name}: {module}.{attribute}"


def test_the_cures_of_renames_exist() -> None:
    """What a rename says to write instead are names of 0.6; what it replaces are none."""
    text = sections_of(ALL)["renames"]
    for old in REMOVED:
        module, _, name = old.rpartition(".")
        short = {"nki.isa": "nisa", "nki.language": "nl"}.get(module, module)
        assert f"* {short}.{name}: " in text
        if short in FACES:
            assert not hasattr(FACES[short], name), old
    cures = re.findall(r"^\* [^:]+: (.*)$", text, flags=re.MULTILINE)
    for module, attribute in re.findall(r"\b(nisa|nl)\.([A-Za-z_]\w*)", "\n".join(cures)):
        assert hasattr(FACES[module], attribute), f"{module}.{attribute}"


def signatures_in(text: str) -> dict[str, ast.arguments]:
    """Every line `nisa.name(parameters)` of the fenced code as the parameters of a function."""
    found = {}
    for shown, parameters in re.findall(r"^((?:nisa|nl|t)\.\w+)\((.*)\)$", text, flags=re.MULTILINE):
        definition = ast.parse(f"def f({parameters}): pass").body[0]
        assert isinstance(definition, ast.FunctionDef)
        found[shown] = definition.args
    return found


@pytest.mark.parametrize("target", [GEN2, GEN3, GEN4], ids=lambda target: target.name)
def test_every_signature_is_the_simulators(target) -> None:
    """Parameters, their order, and which of them have defaults equal inspect.signature, but for self and name."""
    sections = sections_of(ALL, target)
    shown = signatures_in(sections["instructions"] + "\n" + sections["language"])
    assert {f"nisa.{name}" for name in instructions_for(ALL, target)} <= set(shown)
    for name, arguments in shown.items():
        module, attribute = name.split(".")
        parameters = [
            parameter
            for parameter in inspect.signature(getattr(FACES[module], attribute)).parameters.values()
            if parameter.name not in ("self", "name")
        ]
        assert [argument.arg for argument in arguments.args] == [
            parameter.name for parameter in parameters
        ], name
        defaults = [parameter for parameter in parameters if parameter.default is not parameter.empty]
        assert len(arguments.defaults) == len(defaults), name
        for node, parameter in zip(arguments.defaults, defaults, strict=True):
            value = eval(ast.unparse(node), {"nisa": isa, "nl": language, "uint8": language.uint8})
            assert value == parameter.default, f"{name}({parameter.name})"


def test_a_changed_docstring_changes_the_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract of an instruction is read when the slice is made."""
    before = dialect_slice(("softmax",), "trn2")
    monkeypatch.setattr(isa.tensor_copy, "__doc__", "dst = src, upside down.")
    after = dialect_slice(("softmax",), "trn2")
    assert "upside down" not in before
    assert "    dst = src, upside down." in after


def test_a_changed_limit_changes_the_slice() -> None:
    """Numbers of the machine come from its record."""
    smaller = dataclasses.replace(GEN3, psum_banks=3, moving_free_max=77)
    text = dialect_slice(("product",), smaller)
    assert "N at most 77" in text
    assert "PSUM: 3 banks" in text
    assert dialect_slice(("product",), "trn2") != text


def test_a_changed_rule_changes_the_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rule of the lint is listed, in the words of the catalogue."""
    text = dialect_slice((), "trn2")
    for rule in RULES.values():
        assert f"{rule.title} ({rule.id})" in text
    monkeypatch.setitem(RULES, "E00", dataclasses.replace(RULES["E00"], title="a file of another world"))
    assert "a file of another world (E00)" in dialect_slice((), "trn2")


def test_code_in_the_slice_is_the_recipes_own() -> None:
    """Every line of a shown kernel stands in the recipe's file, so that an example cannot drift."""
    text = sections_of(("product",))["kernels"]
    files = "\n".join(file.read_text() for file in data_folder("recipes").glob("*/kernel.py"))
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        for line in block.splitlines():
            assert line in files
    assert "nisa.nc_matmul(" in text
    assert "def residual_add(" in text


# ---- sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", sorted(set(TARGETS)))
def test_slices_are_bounded_and_repeat(target: str) -> None:
    """For every family and target a slice stays below the limit, holds the basics, and is the same again."""
    for primitives in [(), *((name,) for name in ALL), ALL]:
        text = dialect_slice(primitives, target)
        assert len(text) <= MAXIMUM_CHARACTERS
        assert text == dialect_slice(reversed(primitives), target)
        for name in BASICS:
            assert f"\nnisa.{name}(" in text


def test_a_slice_that_is_too_long_names_what_it_leaves_out() -> None:
    """The least basic instructions go first and are named; a limit below the basics is refused."""
    whole = dialect_slice(ALL, "trn3", maximum_characters=60_000)
    text = dialect_slice(ALL, "trn3", maximum_characters=20_000)
    assert "nisa.quantize_mx(" in whole
    assert "There are also, not described here" not in whole
    assert "nisa.quantize_mx(" not in text
    assert "`nisa.quantize_mx`" in text.split("There are also, not described here: ")[1]
    with pytest.raises(PromptError, match="basics of NKI take"):
        dialect_slice(ALL, "trn3", maximum_characters=5_000)


# ---- which instructions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_the_table_names_instructions(name: str) -> None:
    """Each primitive is found by each of its spellings, and its instructions exist."""
    for spelling in PRIMITIVES[name].spellings:
        code = "x @ w" if spelling == "@" else f"y = torch.{spelling.removeprefix('torch.').lstrip('.')}(x)"
        assert name in primitives_in(code), spelling
    for instruction in PRIMITIVES[name].instructions:
        assert inspect.isfunction(getattr(isa, instruction))


def test_primitives_are_whole_words() -> None:
    """`@triton.jit` is no product and `summary` no sum; `x @ w` and `tl.sum` are."""
    assert primitives_in("@triton.jit\ndef f(summary, matmulish): pass") == ()
    assert primitives_in("y = x @ w") == ("product",)
    assert primitives_in("tl.sum(x, 0) + tl.arange(0, T)") == ("reduction",)
    assert primitives_in("probs = torch.softmax(q @ k.T, -1)") == ("product", "softmax", "transpose")


def test_comments_do_not_choose_instructions() -> None:
    """Words in comments of a source are not looked at."""
    source = Source(language="triton", text="# tl.dot\ny = tl.exp(x)\n", origin="x", license="MIT")
    task = KernelTask(
        name="f", summary="", schema="(Tensor x) -> Tensor", layout={}, reference=abs, inputs=tuple, cases=(),
        reference_text="def f(x):\n    return x.cumsum(0)\n", sources=(source,),
    )  # fmt: skip
    assert primitives_of(task) == ("scan",)
    assert primitives_of(dataclasses.replace(task, reference_text="def f(x):\n    return x @ x\n")) == (
        "product",
    )


def test_a_target_is_offered_what_it_has() -> None:
    """Instructions of later generations are left out."""
    assert "nc_matmul_mx" in instructions_for(ALL, "trn3")
    assert "nc_matmul_mx" not in instructions_for(ALL, "trn2")
    assert "dma_transpose" in instructions_for(("product",), "trn2")
    assert "dma_transpose" not in instructions_for(("product",), "inf2")
    assert "takes the `bias`" in dialect_slice((), "inf2")
    assert "takes the `bias`" not in dialect_slice((), "trn2")


def test_unknown_names_are_refused() -> None:
    """A primitive or an instruction that does not exist is an error of ours, by name."""
    with pytest.raises(PromptError, match="Unknown primitive: `softmaxx`"):
        instructions_for(("softmaxx",), "trn2")
    with pytest.raises(PromptError, match="no instruction: `tensor_add`"):
        instruction_entry("tensor_add")
    with pytest.raises(PromptError, match="no instruction: `engine`"):
        instruction_entry("engine")
    assert instruction_entry("reciprocal") == "nisa.reciprocal(dst, data)\n    dst = 1 / data in float32."
    assert language_entry("ds").startswith("nl.ds(start: int, size: int)")


def test_a_plan_brings_its_instructions() -> None:
    """A slice for a plan describes what the plan names, and skips what does not exist."""
    steps = tuple(
        Step(what="x", instruction=name, engine="vector") for name in ("nisa.max8", "nisa.nonsense", "iota")
    )
    plan = Plan(
        summary="", partition_axis="", free_axis="", tiling=(), tiles=(), products=(), steps=steps, edges="",
        numerics="", source_map=(),
    )  # fmt: skip
    text = dialect_slice(plan, "trn2")
    assert "\nnisa.max8(" in text
    assert "\nnisa.iota(" in text
    assert "nonsense" not in text


def test_a_task_that_is_a_recipe_does_not_see_its_own_code() -> None:
    """Recipes named by `without` appear in no slice and in no example."""
    text = dialect_slice(("product",), "trn2", without=("residual_add", "gated_mlp"))
    assert "def residual_add" not in text
    assert "`gated_mlp`" not in text
    assert "def embedding" in text
    assert "From the kernel `linear`" in text
    everything = [file.parent.name for file in data_folder("recipes").glob("*/kernel.py")]
    assert "Verified code" not in dialect_slice((), "trn2", without=everything)
    assert use_of("affine_select")
    assert use_of("affine_select", without=everything) == ""


def test_examples_of_use_are_short_and_contain_the_call() -> None:
    """For every instruction that a recipe calls, a few lines around one call are found."""
    called = {
        name[5:] for code in recipe_functions() for name, _, _ in code.calls if name.startswith("nisa.")
    }
    called = {name for name in called if inspect.isfunction(getattr(isa, name, None))}
    assert {"nc_matmul", "activation", "dma_copy"} <= called
    for name in called:
        text = use_of(name)
        assert f"nisa.{name}(" in text
        assert len(text.splitlines()) <= 30
        assert text.startswith("# recipes/")


# ---- what the patterns promise, held by the simulator -----------------------------------------------------

KERNEL = """
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
def kernel(x):
    out = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.shared_hbm)
    a = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.sbuf)
    p = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    q = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.psum)
    wide = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
    new = nl.ndarray((64, 64), dtype=nl.float32, buffer=nl.sbuf)
    column = nl.ndarray((64, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=a, src=x)
    nisa.nc_matmul(dst=p, stationary=a, moving=a, accumulate=False)
    nisa.nc_matmul(dst=q, stationary=a, moving=a, accumulate=False)
    {line}
    nisa.dma_copy(dst=out, src=a)
    return out
"""


ADD = "nisa.tensor_tensor(dst=new, data1={}, data2={}, op=nl.add)"
PRODUCT = "nisa.nc_matmul(dst={}, stationary=a, moving=a, accumulate=True)"


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ("nl.ndarray((64, 1), dtype=nl.float32)", "nl.ndarray((64,), dtype=nl.float32)", "2 to 5"),
        ("nl.ndarray((128, 2), dtype=nl.float32)", "nl.ndarray((129, 2), dtype=nl.float32)", "at most 128"),
        ("nisa.dma_copy(dst=new, src=a)", "nisa.dma_copy(dst=new, src=p)", "psum"),
        ("nisa.tensor_copy(dst=new, src=a)", "nisa.tensor_copy(dst=a, src=new)", "never written"),
        ("nisa.dma_copy(dst=new, src=a)", "nisa.dma_copy(dst=new, src=a[:, 0:1])", "elements"),
        ("nisa.dma_copy(dst=wide, src=x[0:1].broadcast(0, 128))", "a[0:1].broadcast(0, 64)", "partition"),
        (ADD.format("a", "a[:, 0:1].broadcast(1, 64)"), ADD.format("a", "a[:, 0:1]"), "elements"),
        (ADD.format("p", "a"), ADD.format("p", "q"), "PSUM"),
        (ADD.format("a", "a")[:-1] + ", engine=nisa.engine.gpsimd)",
         ADD.format("a", "p")[:-1] + ", engine=nisa.engine.gpsimd)", "PSUM"),
        ("nisa.tensor_reduce(dst=column, op=nl.add, data=a, axis=1)",
         "nisa.tensor_reduce(dst=column, op=nl.add, data=a, axis=0)", "last free"),
        ("nisa.tensor_scalar(dst=new, data=a, op0=nl.add, operand0=2.0)",
         "nisa.tensor_scalar(dst=new, data=a, op0=nl.divide, operand0=2.0)", "nisa.reciprocal"),
        ("nisa.tensor_copy(dst=wide[32:64], src=a[0:32])", "nisa.tensor_copy(dst=wide[16:48], src=a[0:32])", "start"),
        (PRODUCT.format("p"), f"nisa.memset(p, 0.0); {PRODUCT.format('p')}", "no matmul|not a matmul|matmul wrote"),
        (PRODUCT.format("p"), PRODUCT.format("new"), "PSUM"),
    ],
)  # fmt: skip
def test_the_simulator_keeps_what_the_patterns_say(good: str, bad: str, words: str) -> None:
    """Each rule in `patterns.md` is the simulator's: the line that follows it runs, the one that breaks it does not."""
    x = np.ones((64, 64), dtype=np.float32)
    run_kernel(load_kernel_source(KERNEL.format(line=good), "kernel"), x, target="trn2")
    with pytest.raises(SimulatorError, match=f"(?i){words}"):
        run_kernel(load_kernel_source(KERNEL.format(line=bad), "kernel"), x, target="trn2")
