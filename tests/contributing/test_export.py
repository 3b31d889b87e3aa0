"""An exported recipe is a repository that the `kernels` tools take, with a kernel that is right."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from neuron_port.contributing.export import export
from neuron_port.errors import RecipeError, UsageError
from neuron_port.registry import RegisteredRecipe, Registry, data_folder
from neuron_port.simulator import load_kernel, run_kernel
from tests.contributing.conftest import STORE, silent

Changed = Callable[..., RegisteredRecipe]


def test_what_is_written(changed_recipe: Changed, tmp_path: Path) -> None:
    """build.toml has edition 5's keys for the neuron backend and no others; package, layer, page and test are there."""
    written = export(changed_recipe(), tmp_path / "out", "my-team/tiny-scale-nki", silent)
    built = tomllib.loads((tmp_path / "out" / "build.toml").read_text())
    assert built == {
        "general": {
            "name": "tiny-scale-nki",
            "version": 1,
            "edition": 5,
            "license": "Apache-2.0",
            "backends": ["neuron"],
            "hub": {"repo-id": "my-team/tiny-scale-nki"},
            "neuron": {"python-depends": ["nki"]},
        },
        "torch-noarch": {},
        "kernel": {},
    }
    names = {str(file.relative_to(tmp_path / "out")) for file in written.files}
    package = f"torch-ext/{built['general']['name'].replace('-', '_')}"
    assert names == {
        "build.toml", "flake.nix", "CARD.md", "README.md", "tests/test_tiny_scale.py", f"{package}/__init__.py",
        f"{package}/kernel.py", f"{package}/reference.py", f"{package}/layers/__init__.py",
    }  # fmt: skip
    for name in names:
        if name.endswith(".py"):
            ast.parse((tmp_path / "out" / name).read_text())


def test_the_page_says_what_nobody_has_run(changed_recipe: Changed, tmp_path: Path) -> None:
    """The page begins with a model card's header, and says, like the command, that no device has run the kernel."""
    written = export(changed_recipe(), tmp_path / "out", None, silent)
    page = (tmp_path / "out" / "README.md").read_text()
    header = page.split("---\n")[1]
    assert "library_name: kernels\nlicense: apache-2.0\n" in header
    assert "No Neuron device has run it." in page
    assert 'get_kernel("OWNER/NAME", version=1)' in page
    assert page == (tmp_path / "out" / "CARD.md").read_text()
    assert any("no Neuron device" in sentence for sentence in written.not_run)
    assert any("uploaded" in sentence for sentence in written.not_run)


def test_the_exported_package_computes(changed_recipe: Changed, tmp_path: Path) -> None:
    """The exported kernel and the exported reference agree; the package needs nothing of neuron-port."""
    export(changed_recipe(), tmp_path / "out", None, silent)
    package = tmp_path / "out" / "torch-ext" / "tiny_scale_nki"
    assert all("neuron_port" not in file.read_text() for file in package.rglob("*.py"))
    kernel = load_kernel(package / "kernel.py", "tiny_scale")
    scope: dict[str, object] = {}
    exec((package / "reference.py").read_text(), scope)
    x, gain = torch.randn(9, 40), torch.randn(40)
    expected = scope["tiny_scale"](x, gain, floor=-0.5)  # type: ignore[operator]
    (output,) = run_kernel(kernel, x.numpy(), gain.numpy(), target="trn2", floor=-0.5).outputs
    np.testing.assert_allclose(output, expected.numpy(), rtol=1e-6)


def test_the_layer_passes_arguments_on(changed_recipe: Changed, tmp_path: Path) -> None:
    """The layer calls the operator with tensors in the schema's order and attributes by keyword."""
    export(changed_recipe(), tmp_path / "out", None, silent)
    text = (tmp_path / "out" / "torch-ext" / "tiny_scale_nki" / "layers" / "__init__.py").read_text()
    scope: dict[str, object] = {"tiny_scale": lambda *args, **keywords: (args, keywords)}
    exec(text.replace("from ..kernel import tiny_scale\n", ""), scope)
    layer = scope["TinyScale"]()  # type: ignore[operator]
    assert layer(1, 2, floor=3.0) == ((1, 2), {"floor": 3.0})


def test_optional_tensors_may_be_missing(tmp_path: Path) -> None:
    """A `Tensor? bias` of the schema may be None in the layer's signature."""
    export(Registry(data_folder("recipes"))["rms_norm"], tmp_path / "out", None, silent)
    layer = (tmp_path / "out" / "torch-ext" / "rms_norm_nki" / "layers" / "__init__.py").read_text()
    assert "x: torch.Tensor, gamma: torch.Tensor | None" in layer


def test_a_wrong_kernel_is_not_exported(changed_recipe: Changed, tmp_path: Path) -> None:
    """A kernel that is wrong on one of its cases is refused with that case, and nothing is written."""
    wrong = ("kernel.py", STORE, "    nisa.memset(dst=x_sbuf, value=0.0)\n" + STORE)
    with pytest.raises(RecipeError, match="is wrong on its own cases: `one token`"):
        export(changed_recipe(wrong), tmp_path / "out", None, silent)
    assert not (tmp_path / "out").exists()


def test_refusals(changed_recipe: Changed, tmp_path: Path) -> None:
    """A folder with something in it, a bad id and a draft are refused by name, before anything runs."""
    found = changed_recipe()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="is not an empty folder"):
        export(found, tmp_path / "full", None, silent)
    with pytest.raises(UsageError, match="id is owner/name: `tiny`"):
        export(found, tmp_path / "out", "tiny", silent)
    (found.folder / "draft.json").write_text("{}")
    with pytest.raises(RecipeError, match="is a draft"):
        export(found, tmp_path / "out", None, silent)
