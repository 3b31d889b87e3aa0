"""The layer's own PyTorch source as data for the language model, with where it comes from and its licence."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from importlib import metadata
from typing import Any

import torch

from neuron_port.drafting.sources.licences import is_allowed, objection
from neuron_port.task import Source
from neuron_port.types import Checkpoint
from neuron_port.walk.calls import Call

# What packages write into the free text of their licence field, and the SPDX identifier that they mean.
_SPDX = {"apache 2.0 license": "Apache-2.0", "apache license 2.0": "Apache-2.0", "apache-2.0": "Apache-2.0",
         "mit license": "MIT", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "bsd": "BSD-3-Clause"}  # fmt: skip
_OWN_LICENSE = {
    "torch": "BSD-3-Clause"
}  # its metadata lists the licences of everything that is bundled with it
_REMOTE = "transformers_modules"  # code that came with a checkpoint


def layer_sources(
    call: Call, checkpoint: Checkpoint | None = None, allow_licenses: Collection[str] = ()
) -> tuple[Source, ...]:
    """The classes (or the function) that compute this call, outermost first.

    Those under a licence that is refused are left out, unless the user insists on it (`allow_licenses`).
    """
    found: dict[str, Source] = {}
    for subject in _subjects(call):
        source = _source(subject, checkpoint)
        if source is None:
            continue
        if objection(source.license):
            if not is_allowed(source.license, allow_licenses):
                continue
            source = replace(source, refusal_overridden=True)
        found.setdefault(source.text, source)
    return tuple(found.values())


def _subjects(call: Call) -> Iterator[Any]:
    if call.operation == "module":
        assert call.module is not None
        for module in call.module.modules():
            if type(module) not in (torch.nn.Linear, torch.nn.Embedding, torch.nn.Dropout):
                yield type(module)
        return
    if call.module is not None:  # attention: what the model's own file calls
        own = getattr(sys.modules[type(call.module).__module__], "eager_attention_forward", None)
        if own is not None:
            yield own
    yield call.function


def _source(subject: type | Callable[..., Any], checkpoint: Checkpoint | None) -> Source | None:
    try:
        text = inspect.getsource(subject)
    except (OSError, TypeError):  # written in C, or typed in
        return None
    module = subject.__module__
    package = module.split(".")[0]
    if package == _REMOTE:
        name = checkpoint.name if checkpoint else "the checkpoint"
        license_name = checkpoint.license if checkpoint else None
        return Source(language="pytorch", text=text, origin=f"{name}, {module}", license=license_name)
    return Source(
        language="pytorch",
        text=text,
        origin=f"{package} {_version(package)}, {module}",
        license=_license(package),
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return "(no version)"


def _license(package: str) -> str | None:
    """The SPDX identifier that the package's metadata gives."""
    if package in _OWN_LICENSE:
        return _OWN_LICENSE[package]
    try:
        fields = metadata.metadata(package.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return "Apache-2.0" if package == "neuron_port" else None
    written = str(fields["License-Expression"] or fields["License"] or "")
    return _SPDX.get(re.sub(r"\s+", " ", written).strip().lower(), written or None)
