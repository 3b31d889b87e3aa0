"""Builds the task of one layer: reference exported and printed, recipe generated, both tried before anyone pays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from neuron_port.drafting.subjects.calling import Calling, attempt
from neuron_port.drafting.subjects.function_inputs import nearest
from neuron_port.drafting.subjects.layer_sources import layer_sources
from neuron_port.drafting.subjects.recipe_code import layer_recipe_text
from neuron_port.drafting.subjects.recipe_pieces import Problem, inputs_code, size_letters
from neuron_port.drafting.subjects.reference_code import (
    Argument,
    Body,
    NotDraftableError,
    compile_function,
    export_body,
    reference_text,
    run_text,
)
from neuron_port.match.probe import RELATIVE_LIMIT, probe, relative_difference
from neuron_port.recipe import Case, Recipe, Size
from neuron_port.task import KernelTask
from neuron_port.types import Checkpoint, Layer, digest

MOST_TOKENS = 300  # two tiles and a tail; more where the model itself has more
PROMPT_TOKENS = 128  # of the ordinary case
EXPORT_TOKENS = 7
TAILS = (3, 130)
TRIED_TOKENS = (1, 3, 130)
VOCABULARY = 65536  # axes from here on are rows of results, not terms of a sum
REDUCING = (
    "functional.linear", "layer_norm", "rms_norm", "group_norm", "scaled_dot_product_attention", "conv1d", " @ ",
    ".mean(", ".sum(", ".softmax(", "mm(", ".var(", ".cumsum(", "einsum", "norm",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LayerTask:
    """What a kernel for a layer must compute, and the two files that make it serve the layer.

    `recipe_text` and `task.reference_text` are `recipe.py` and `reference.py` of the folder that an accepted kernel
    gets; both have been run against the layer itself.
    """

    task: KernelTask
    recipe_text: str
    layers: tuple[str, ...]  # all that it serves, in the order of the model
    signatures: tuple[str, ...]
    operation: str
    content: str  # digest of everything but the name: equal for layers that need the same kernel

    @property
    def reference_text(self) -> str:
        return self.task.reference_text

    @property
    def serves(self) -> str:
        """For people: the first layer and how many more."""
        more = len(self.layers) - 1
        return f"`{self.layers[0]}`" + (f" and {more} more" if more else "")


class LayerBuild:
    """One layer on its way to a task."""

    def __init__(
        self,
        layer: Layer,
        calling: Calling,
        domain: Size,
        checkpoint: Checkpoint | None,
        allow_licenses: Collection[str],
        generator: torch.Generator,
    ) -> None:
        self.allow_licenses = allow_licenses
        self.layer = layer
        self.calling = calling
        self.checkpoint = checkpoint
        self.generator = generator
        self.is_free = any(item.free_axis is not None for item in calling.arguments())
        self.domain = domain
        self.bodies = self._export()

    def _export(self) -> tuple[Body, Body]:
        """The code in both dtypes, for any number of tokens where the layer's code allows it."""
        if self.is_free:
            try:
                return self._export_for(self.calling.arguments())
            except NotDraftableError:
                fixed = self.calling.arguments(free=False)
                bodies = self._export_for(fixed)  # if this fails too, its reason is the right one
                self.is_free = False
                return bodies
        return self._export_for(self.calling.arguments())

    def _export_for(self, arguments: Sequence[Argument]) -> tuple[Body, Body]:
        tokens = EXPORT_TOKENS
        bodies = []
        for dtype in (torch.float32, torch.bfloat16):
            examples = self.calling.examples(self.generator, tokens, dtype)
            if not any(item.free_axis is not None for item in arguments):
                examples = [
                    example if tuple(example.shape) == item.shape else _resized(example, item)
                    for example, item in zip(examples, arguments, strict=True)
                ]
            bodies.append(export_body(self.calling.run, arguments, examples, dtype))
        return bodies[0], bodies[1]

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """Those that the result depends on."""
        used = self.bodies[0].used | self.bodies[1].used
        return tuple(item for item in self.calling.arguments(free=self.is_free) if item.name in used)

    def task(self, name: str) -> LayerTask:
        arguments = self.arguments
        if not any(item.is_float for item in arguments):
            raise NotDraftableError("its result depends on no floating point tensor")
        if any(not dtype.is_floating_point for dtype in self.bodies[0].result_dtypes):
            raise NotDraftableError("returns integers or booleans")
        own_dtype = all(dtype is torch.bfloat16 for dtype in self.bodies[1].result_dtypes)
        if not own_dtype:
            raise NotDraftableError("returns float32 where it is given bfloat16")
        path = self.layer.name.split("#")[0]
        summary = f"{self.layer.module_class} of {path}" if path != self.layer.module_class else path
        if self.layer.operation != "module":
            summary = f"{self.layer.operation.replace('_', ' ')} in {summary}"
        code = reference_text(name, f"What {name} computes: {summary}.", arguments, *self.bodies)
        reference = compile_function(code, name, f"{name}/reference.py")
        problem = self._problem(arguments, reference, code)
        recipe_code = layer_recipe_text(
            problem,
            self.calling,
            name=name,
            summary=f"{summary[0].upper()}{summary[1:]}.",
            page=self._page(name, summary, problem),
            attributes=self.layer.attributes,
            used=frozenset(item.name for item in arguments),
        )
        recipe: Recipe = run_text(recipe_code, f"{name}/recipe.py")["RECIPE"]
        self._try(recipe, reference)
        task = KernelTask(
            name=name,
            summary=recipe.summary,
            schema=recipe.schema,
            layout=problem.layout,
            reference=reference,
            reference_text=code,
            inputs=recipe.inputs,
            inputs_text="\n".join(inputs_code(problem)),
            cases=recipe.cases,
            sizes=recipe.sizes,
            dtypes=recipe.dtypes,
            tolerance=recipe.tolerance,
            sources=layer_sources(self.calling.call, self.checkpoint, self.allow_licenses),
            flops=recipe.flops,
        )
        body = (self.bodies[0].lines, self.bodies[1].lines, recipe_code.replace(name, "").split("\n\n", 1)[1])
        return LayerTask(
            task=task,
            recipe_text=recipe_code,
            layers=(self.layer.name,),
            signatures=(self.layer.signature,),
            operation=self.layer.operation,
            content=digest(self.layer.operation, body[0], body[1], _without_summary(body[2])),
        )

    def _page(self, name: str, summary: str, problem: Problem) -> str:
        free = ", ".join(f"{key} = {size.least} to {size.most}" for key, size in problem.free.items())
        fixed = ", ".join(
            f"{letter} = {size}" for letter, size in problem.sizes.items() if letter not in problem.free
        )
        return (
            f"{summary}: drafted, and bound by structure.\n\n"
            "Serves calls with the parameters, numbers and input shapes below, if the numeric probe agrees.\n"
            f"Sizes: {'; '.join(item for item in (free, fixed) if item)}."
        )

    def _problem(self, arguments: tuple[Argument, ...], reference: Callable[..., Any], code: str) -> Problem:
        letters = size_letters(arguments)
        sizes = {letter: size for size, letter in letters.items()}
        free = {"T": self.domain} if self.is_free else {}
        weights = frozenset(item.role for item in self.calling.weights)
        limit = "T" if self.layer.operation == "attention_decode" else str(self.calling.index_limit)
        if limit != "T":
            limit = letters.get(self.calling.index_limit, limit)
        results = self.bodies[0].result_shapes
        return Problem(
            arguments=arguments,
            weights=weights,
            sizes=sizes,
            free=free,
            cases=self._cases(sizes, any(item.is_float and item.name not in weights for item in arguments)),
            integers={item.name: limit for item in arguments if not item.is_float},
            reduction_length=self._reduction(arguments, letters, code),
            flops=self._flops(reference, arguments),
            result_shapes=results,
            letters=letters,
        )

    def _reduction(self, arguments: Sequence[Argument], letters: Mapping[int, str], code: str) -> str | None:
        """The longest axis that the layer may sum over; None for elementwise code."""
        if not sums(code):
            return None
        if self.is_free and self.layer.operation.startswith("attention"):
            return "T"
        sizes = [
            size for item in arguments for size in item.shape if isinstance(size, int) and size < VOCABULARY
        ]
        return letters.get(max(sizes, default=1))

    def _flops(self, reference: Callable[..., Any], arguments: Sequence[Argument]) -> tuple[int, int, int]:
        """a, b, c of a * T * T + b * T + c operations, from what torch counts at three sizes."""
        counts = []
        for tokens in (2, 3, 4):
            tensors = [
                torch.empty(
                    item.sized(tokens), dtype=torch.float32 if item.is_float else torch.int32, device="meta"
                )
                for item in arguments
            ]
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                reference(*tensors)
            counts.append(counter.get_total_flops())
        square = (counts[2] - 2 * counts[1] + counts[0]) // 2
        linear = counts[1] - counts[0] - 5 * square
        return square, linear, counts[0] - 4 * square - 2 * linear

    def _cases(self, sizes: Mapping[str, int], has_values: bool) -> tuple[Case, ...]:
        def case(name: str, kind: Any, tokens: int, scale: float = 1.0, style: Any = "normal") -> Case:
            free = {"T": nearest(self.domain, tokens)} if self.is_free else {}
            return Case(name=name, kind=kind, sizes={**free, **sizes}, scale=scale, style=style)

        cases = [case("a prompt", "ordinary", PROMPT_TOKENS)]
        if self.is_free:
            cases += [case("one token", "ordinary", 1)]
            cases += [case(f"{tokens} tokens", "tail", tokens) for tokens in TAILS]
        if has_values:
            large = 6.0 if "attention" in self.layer.operation else 30.0
            cases += [case("tiny values", "stress", 17, 1e-3), case("large values", "stress", 17, large)]
            for style in ("constant rows", "outliers", "one hot", "clustered", "long tail", "signed zeros"):
                cases.append(case(style, "stress", 16, style=style))
        else:
            cases.append(case("other ids", "stress", 33))
        if self.is_free and self.domain.most > MOST_TOKENS:
            cases.append(case("the longest prompt", "large", self.domain.most))
        return tuple(cases)

    def _try(self, recipe: Recipe, reference: Callable[..., Any]) -> None:
        """The generated files against the layer itself, as the matcher will; and in every dtype that a judge needs."""
        call = self.calling.call
        bindings = recipe.bindings(call)
        if not bindings:
            raise NotDraftableError("its own call does not fit the recipe that was generated for it")
        binding = bindings[0]
        for scale, difference in attempt(probe, call, recipe, reference, binding).items():
            if not difference <= RELATIVE_LIMIT:
                raise NotDraftableError(
                    f"the exported code differs from the layer by {difference:.1e} at {scale}"
                )
        names = {item.name for item in self.arguments}
        order = [item.name in names for item in self.calling.arguments()]
        for tokens in {nearest(self.domain, tokens) for tokens in TRIED_TOKENS} if self.is_free else ():
            self._compare(reference, order, tokens)

    def _compare(self, reference: Callable[..., Any], order: Sequence[bool], tokens: int) -> None:
        """Other token counts and dtypes than those of the export."""
        for dtype, limit in ((torch.float32, RELATIVE_LIMIT), (torch.bfloat16, 2.0**-6)):
            tensors = self.calling.examples(self.generator, tokens, dtype)
            own = attempt(self.calling.run, *tensors)
            passed = [tensor for tensor, is_used in zip(tensors, order, strict=True) if is_used]
            ours = _tuple(attempt(reference, *passed))
            difference = relative_difference(ours, own)
            if not difference <= limit:
                raise NotDraftableError(
                    f"the exported code differs from the layer by {difference:.1e} in {dtype} at {tokens} tokens"
                )
            if dtype is torch.float32:
                exact = [item.double() if item.is_floating_point() else item for item in passed]
                if any(item.dtype is not torch.float64 for item in _tuple(attempt(reference, *exact))):
                    raise NotDraftableError("the exported code does not compute in float64")


def _tuple(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _resized(example: torch.Tensor, argument: Argument) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if example.is_floating_point():
        return torch.randn(argument.shape, generator=generator).to(example.dtype)  # type: ignore[arg-type]
    return torch.zeros(argument.shape, dtype=example.dtype)  # type: ignore[arg-type]


def tokens_of(calling: Calling, layer: Layer) -> int:
    """How many tokens (rows) the layer's call has."""
    counts = [1]
    for item, spec in zip(calling.tensors, layer.inputs, strict=True):
        if calling.rows:
            counts.append(torch.Size(spec.shape[: calling.rows]).numel())
        elif item.token_axis is not None:
            counts.append(spec.shape[item.token_axis])
    return max(counts)


def sums(code: str) -> bool:
    """Whether torch code adds up along an axis, as far as its words tell."""
    return any(mark in code for mark in REDUCING)


def _without_summary(recipe_code: str) -> str:
    """The generated recipe less what only says where the layer stands."""
    marks = ("summary=", "name=")
    return "\n".join(line for line in recipe_code.splitlines() if not line.strip().startswith(marks))
