"""The texts of an exported repository: build file, page, package, layer and a test for a machine with the device."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from neuron_port.contributing.new import class_name
from neuron_port.errors import RecipeError
from neuron_port.parity.draw import Draw
from neuron_port.recipe import NKI_VERSION, Case
from neuron_port.registry import RegisteredRecipe
from neuron_port.simulator.parsing import parse_python

UNNAMED = "OWNER/NAME"  # what build.toml says until somebody decides
EXPORTED_VERSION = 1
TESTED_CASES = 4

DEVICE_TEST = '''"""KERNEL against its reference, on a Neuron device, on shapes of the recipe's cases."""

import pytest
import torch
from KERNEL_nki import KERNEL
from KERNEL_nki.reference import KERNEL as reference

pytestmark = pytest.mark.skipif(not hasattr(torch, "neuron"), reason="needs a Neuron device")
# name; (shape, values) of each tensor, normal ones or integers below a bound; attributes
CASES = [
    CASE_LINES
]


def draw(shape, values, generator):
    if values == "normal":
        return torch.randn(shape, generator=generator).to(torch.bfloat16)
    return torch.randint(0, values, shape, generator=generator, dtype=torch.int32)


@pytest.mark.parametrize(("name", "tensors", "attributes"), CASES, ids=[case[0] for case in CASES])
def test_kernel_agrees_with_its_reference(name, tensors, attributes):
    """In bfloat16, within the noise of one rounding and of the order of summation."""
    generator = torch.Generator().manual_seed(0)
    inputs = [None if tensor is None else draw(*tensor, generator) for tensor in tensors]
    expected = reference(*inputs, **attributes)
    on_device = [None if tensor is None else tensor.to("neuron") for tensor in inputs]
    result = KERNEL(*on_device, **attributes)
    pairs = zip(result, expected) if isinstance(expected, tuple) else [(result, expected)]
    for ours, right in pairs:
        torch.testing.assert_close(ours.cpu(), right, rtol=2e-2, atol=2e-2)
'''
FLAKE = """{
  description = "SUMMARY";
  inputs.kernel-builder.url = "github:huggingface/kernels";
  outputs = { self, kernel-builder }:
    kernel-builder.lib.genKernelFlakeOutputs { inherit self; path = ./.; };
}
"""
CARD_HEADER = """---
library_name: kernels
license: LICENSE
tags:
- kernel
- neuron
- nki
---"""


def flake_nix(found: RegisteredRecipe) -> str:
    """What Nix reads to run kernel-builder on the repository."""
    return FLAKE.replace("SUMMARY", found.recipe.summary.rstrip(".").replace('"', "'"))


def build_toml(found: RegisteredRecipe, repository: str | None) -> str:
    """What kernel-builder reads: a kernel without compiled parts, for the neuron backend, that needs nki."""
    lines = [
        "[general]",
        f'name = "{_hub_name(found.name)}"',
        f"version = {EXPORTED_VERSION}",
        "edition = 5",
        f'license = "{found.recipe.license}"',
        'backends = ["neuron"]',
        "",
        "[general.hub]",
        f'repo-id = "{repository or UNNAMED}"',
        "",
        "[general.neuron]",
        'python-depends = ["nki"]',
        "",
        "[torch-noarch]",
        "",
        "[kernel]",
    ]
    return "\n".join(lines) + "\n"


def _hub_name(name: str) -> str:
    return f"{name.replace('_', '-')}-nki"


def package_module(found: RegisteredRecipe) -> str:
    """`__init__.py` of the package: the kernel under the recipe's name, and the layers."""
    return (
        f'"""{found.recipe.summary} An NKI {NKI_VERSION} kernel for AWS Trainium and Inferentia.\n\n'
        f"`{found.name}{found.recipe.schema}`; reference.py says in plain torch what it computes.\n"
        f'"""\n\n'
        f"from . import layers\nfrom .kernel import {found.name}\n\n"
        f'__all__ = ["{found.name}", "layers"]\n'
    )


def layers_module(found: RegisteredRecipe) -> str:
    """`layers/__init__.py`: the operator as a module without state, which is what the `kernels` package takes."""
    tensors = ", ".join(f"{name}: {_annotation(found, name)}" for name in found.recipe.tensor_arguments)
    attributes = found.recipe.attribute_arguments
    keywords = f", *, {', '.join(attributes)}" if attributes else ""
    passed = ", ".join([*found.recipe.tensor_arguments, *(f"{name}={name}" for name in attributes)])
    result = "torch.Tensor" if found.recipe.result_count == 1 else "tuple[torch.Tensor, ...]"
    return (
        f'"""{found.recipe.summary} As a torch module, for code that replaces layers."""\n\n'
        "import torch\n\n"
        f"from ..kernel import {found.name}\n\n\n"
        f"class {class_name(found.name)}(torch.nn.Module):\n"
        f'    """The operator without state: weights and attributes are arguments, in the order of its schema."""\n\n'
        "    has_backward = False\n"
        "    can_torch_compile = False\n\n"
        f"    def forward(self, {tensors}{keywords}) -> {result}:\n"
        f"        return {found.name}({passed})\n\n\n"
        f'__all__ = ["{class_name(found.name)}"]\n'
    )


def _annotation(found: RegisteredRecipe, name: str) -> str:
    """Of a tensor argument; `Tensor? bias` may be missing."""
    return "torch.Tensor | None" if f"Tensor? {name}" in found.recipe.schema else "torch.Tensor"


def card(found: RegisteredRecipe, repository: str | None) -> str:
    """The page: a model card's header, how to load it, what was verified and what was not, then the recipe's own page."""
    recipe = found.recipe
    shown = repository or UNNAMED
    own_page = found.source_text("README.md").strip().split("\n", 1)
    body = own_page[1].strip() if len(own_page) > 1 else ""
    arguments = ", ".join([*recipe.tensor_arguments, *recipe.attribute_arguments])
    text = [
        CARD_HEADER.replace("LICENSE", recipe.license.lower()),
        "",
        f"# {_hub_name(found.name)}",
        "",
        f"{recipe.summary} A kernel in NKI {NKI_VERSION} for {', '.join(_machines(recipe.generations))}, in "
        f"{' and '.join(recipe.dtypes)}: the recipe `{found.name}` of neuron-port, version {recipe.version}.",
        "",
        "```python",
        "from kernels import get_kernel",
        "",
        f'{found.name} = get_kernel("{shown}", version={EXPORTED_VERSION}).{found.name}',
        f"{found.name}({arguments})",
        "```",
        "",
        "When it was exported, neuron-port's simulator of NKI ran it on all of its cases, in these dtypes and by the "
        "rules of these machines, and it agreed with `reference.py` to the noise of the dtype.",
        "**No Neuron device has run it.** `tests/` is for a machine that has one.",
        "",
        "The layer in `layers` is the operator without state: it takes weights and attributes as arguments.",
        "",
        body,
    ]
    return "\n".join(text).rstrip() + "\n"


def _machines(generations: Sequence[str]) -> list[str]:
    names = {"gen2": "Inf2 and Trn1 (gen2)", "gen3": "Trn2 (gen3)", "gen4": "Trn3 (gen4)"}
    return [names.get(generation, generation) for generation in generations]


def device_test(found: RegisteredRecipe) -> str:
    """A test for a machine with the device: the kernel against the reference on shapes of the recipe's cases."""
    _require_function(found)
    cases = "\n".join(f"    {_case_literal(found, case)}," for case in _tested_cases(found))
    return DEVICE_TEST.replace("KERNEL", found.name).replace("    CASE_LINES", cases)


def _require_function(found: RegisteredRecipe) -> None:
    names = {
        node.name for node in parse_python(found.kernel.source).body if isinstance(node, ast.FunctionDef)
    }
    if found.name not in names:
        raise RecipeError(f"Recipe `{found.name}`: kernel.py has no function `{found.name}`")


def _tested_cases(found: RegisteredRecipe) -> list[Case]:
    """Ordinary ones and tails, the first few: values are drawn normally there, so stress would not be stress."""
    usual = [case for case in found.recipe.cases if case.kind in ("ordinary", "tail")]
    return usual[:TESTED_CASES]


def _case_literal(found: RegisteredRecipe, case: Case) -> str:
    """One case as a line of Python: its name, what each tensor is, its attributes."""
    drawn = found.recipe.inputs(case.sizes, Draw(0))
    tensors = [
        None
        if array is None
        else (tuple(array.shape), "normal" if array.dtype.kind == "f" else int(array.max()) + 1)
        for array in drawn
    ]
    return repr((case.name, tensors, dict(case.attributes)))
