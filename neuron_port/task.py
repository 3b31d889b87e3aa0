"""`KernelTask`: what a kernel must compute, apart from how. Drafting, grading, benchmarks and environments start here.

A task is a recipe without its kernel: an operator's schema, a torch reference that says what is right, cases with named
sizes, and the GPU sources that a kernel may be drafted from. Three things become tasks: a recipe
(`grading/recipe_task.py`), a layer of a model (`drafting/subjects/layers.py`), and a function in a file of the user's own
(`drafting/subjects/function_task.py`). Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from neuron_port.recipe import Case, Size, Tolerance, attribute_arguments, result_count, tensor_arguments
from neuron_port.types import digest

Language = Literal["triton", "cuda", "pytorch"]
# Of everything that judges drafts: the grader, its cases, the simulator's rules. Raised when a kernel that passed
# before might not pass any more; drafts that an older one admitted are not used until they are verified again.
VERIFIER_VERSION = "1"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Code for another chip that computes the same, shown to the language model as data. Never executed."""

    language: Language
    text: str
    origin: str  # URL with commit and path, or a file's name
    license: str | None  # SPDX identifier; None: nobody said
    refusal_overridden: bool = False  # the user insisted on a source whose licence is refused otherwise


@dataclass(frozen=True, kw_only=True)
class Invariant:
    """What must hold of every output whatever the inputs: `check(inputs, attributes, outputs)` names what does not.

    It receives NumPy arrays in float32 and returns "" when it holds.
    """

    name: str  # "rows sum to 1"
    check: Callable[[tuple[Any, ...], Mapping[str, Any], tuple[Any, ...]], str]


@dataclass(frozen=True, kw_only=True)
class KernelTask:
    """What a kernel must compute, and the cases on which it is tried.

    Attributes:
        name: an identifier; the kernel's entry point has this name.
        summary: one sentence.
        schema: the operator in torch.library notation, tensors first, as in `Recipe.schema`:
            "(Tensor x, Tensor gamma, float eps) -> Tensor". The kernel takes the tensors in this order and the
            attributes by keyword.
        layout: the tensors' shapes in terms of sizes, in words: {"x": "[T, H]", "gamma": "[H]", "return": "[T, H]"}.
        reference: reference(*torch tensors, **attributes) -> a tensor or a tuple; it works in any float dtype.
        reference_text: its source, for people and for the language model.
        inputs: inputs(sizes, draw) -> the tensor arguments as NumPy arrays (`parity/draw.py` has `Draw`).
        cases: public; the language model is told their sizes, and of a wrong kernel's outputs the few elements that
            are worst, beside what was expected there. Of hidden cases it is told the kind alone.
        sizes: which values each size may take; hidden cases draw from them. A size that is absent stays as it is in
            the cases.
        flops: flops(*shapes of the tensors) -> operations of TensorE (2 per multiply-add); None: not known.
        key: digest of everything that decides the task; equal keys mean equal tasks.
    """

    name: str
    summary: str
    schema: str
    layout: Mapping[str, str]
    reference: Callable[..., Any]
    reference_text: str
    inputs: Callable[..., tuple[Any, ...]]
    cases: tuple[Case, ...]
    sizes: Mapping[str, Size] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    tolerance: Tolerance = field(default_factory=Tolerance)
    invariants: tuple[Invariant, ...] = ()
    sources: tuple[Source, ...] = ()
    flops: Callable[..., int] | None = None
    inputs_text: str = ""  # the source of `inputs`, or whatever else decides what it draws

    @property
    def tensor_arguments(self) -> tuple[str, ...]:
        return tensor_arguments(self.schema)

    @property
    def attribute_arguments(self) -> tuple[str, ...]:
        return attribute_arguments(self.schema)

    @property
    def result_count(self) -> int:
        return result_count(self.schema)

    @cached_property
    def key(self) -> str:
        return digest(
            self.name,
            self.summary,
            self.schema,
            dict(self.layout),
            self.reference_text,
            self.inputs_text,
            self.cases,
            dict(self.sizes),
            self.dtypes,
            self.tolerance,
            [invariant.name for invariant in self.invariants],
            self.sources,
        )
