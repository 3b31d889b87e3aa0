"""A recipe as a Hugging Face `kernels` repository for the neuron device.

What such a repository is: `build.toml` (edition 5) with `backends = ["neuron"]` and a `[torch-noarch]` framework, the
package in `torch-ext/<package>/`, its layers in `layers/__init__.py` (huggingface/kernels: docs/source/builder and
examples/kernels/relu-nki, Apache-2.0). The page is CARD.md, which `kernel-builder` uploads as README.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from neuron_port.contributing.export_texts import (
    build_toml,
    card,
    device_test,
    flake_nix,
    layers_module,
    package_module,
)
from neuron_port.contributing.records import Say
from neuron_port.contributing.trials import Bench, check_parity
from neuron_port.errors import RecipeError, UsageError
from neuron_port.registry import RegisteredRecipe

REPOSITORY_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
NOT_RUN = (
    "nothing was uploaded: this machine was not asked to reach the hub",
    "kernel-builder did not build it: `kernel-builder build-and-upload` needs Nix",
    "no Neuron device has run it: tests/ is for a machine with one; here the simulator ran it on all of its cases",
)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and what nobody has tried."""

    folder: Path
    files: tuple[Path, ...]
    not_run: tuple[str, ...] = NOT_RUN


def export(
    found: RegisteredRecipe, output: Path, repository: str | None = None, say: Say = lambda text: None
) -> Exported:
    """Run the kernel on all of its cases, then write the repository to `output`.

    Args:
        repository: its id on the hub, "owner/name"; None: to be filled in before it is uploaded.

    Raises:
        UsageError: `output` is not empty, or `repository` is no id.
        RecipeError: the recipe is a draft, or its kernel is wrong on one of its cases.
    """
    if repository is not None and REPOSITORY_ID.fullmatch(repository) is None:
        raise UsageError(
            f"A repository's id is owner/name: `{repository}`", hint="Such as `my-team/rms-norm-nki`."
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(
            f"`{output}` is not an empty folder: nothing was written", hint="Choose another --output."
        )
    if found.is_draft:
        raise RecipeError(
            f"Recipe `{found.name}` is a draft: a language model wrote its kernel, and no person has adopted it",
            hint=f"Read it, then: neuron-port recipes adopt {found.folder}",
        )
    parity, _ = check_parity(Bench(found), say)
    if parity.problems:
        raise RecipeError(
            f"Recipe `{found.name}` is wrong on its own cases: {parity.problems[0]}",
            hint=f"See all of it: neuron-port recipes check {found.folder}",
        )
    files = repository_files(found, repository)
    for name, text in files.items():
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Exported(folder=output, files=tuple(output / name for name in files))


def repository_files(found: RegisteredRecipe, repository: str | None) -> dict[str, str]:
    """The repository's files by path; equal recipes give equal bytes."""
    package = package_name(found.name)
    page = card(found, repository)
    return {
        "build.toml": build_toml(found, repository),
        "flake.nix": flake_nix(found),
        "CARD.md": page,
        "README.md": page,
        f"torch-ext/{package}/__init__.py": package_module(found),
        f"torch-ext/{package}/kernel.py": found.kernel.source,
        f"torch-ext/{package}/reference.py": found.source_text("reference.py"),
        f"torch-ext/{package}/layers/__init__.py": layers_module(found),
        f"tests/test_{found.name}.py": device_test(found),
    }


def package_name(name: str) -> str:
    """The Python package: the repository's name with `_` for `-`."""
    return f"{name}_nki"
