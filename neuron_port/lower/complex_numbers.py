"""Takes complex numbers out of a decomposed program: each becomes two nodes, its real and its imaginary part.

A NeuronCore has no complex type, and rotary embeddings are often written with one (polar, view_as_complex, a product,
view_as_real). Operators that only move elements are applied to both parts; arithmetic is written out. The program's
inputs and outputs must be real; a complex constant or buffer is split where it is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from neuron_port.lower.interface import node_error

aten = torch.ops.aten


@dataclass(frozen=True)
class _Parts:
    """A complex tensor as two real ones of its shape."""

    real: Any
    imaginary: Any


# What moves elements about: applied to each part alone.
_MOVES = frozenset(
    {
        aten.alias.default, aten.cat.default, aten.clone.default, aten.constant_pad_nd.default, aten.detach.default,
        aten.detach_.default, aten.embedding.default, aten.expand.default, aten.flip.default, aten.gather.default,
        aten.index.Tensor, aten.index_select.default, aten.lift_fresh_copy.default, aten.neg.default,
        aten.permute.default, aten.repeat.default, aten.reshape.default, aten.select.int, aten.slice.Tensor,
        aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.stack.default, aten.sum.default,
        aten.sum.dim_IntList, aten.transpose.int, aten.unsqueeze.default, aten.view.default, aten.where.self,
        aten._unsafe_view.default,
    }
)  # fmt: skip


def without_complex_numbers(program: ExportedProgram) -> ExportedProgram:
    """The same program, changed in place where it has complex nodes.

    Raises LoweringError for an operator on complex numbers that has no rule here.
    """
    graph = program.graph_module.graph
    if not any(_is_complex(node) for node in graph.nodes):
        return program
    _Splitter(program).run()
    graph.eliminate_dead_code()
    graph.lint()
    program.graph_module.recompile()
    return program


def _is_complex(item: Any) -> bool:
    value = item.meta.get("val") if isinstance(item, Node) else None
    return isinstance(value, torch.Tensor) and value.dtype.is_complex


class _Splitter:
    """Walks the graph once; every complex node gets its parts, every real one that reads them a real source."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.graph: Graph = program.graph_module.graph
        self.parts: dict[Node, _Parts] = {}
        self.here: Node | None = None

    def run(self) -> None:
        for node in list(self.graph.nodes):
            reads = any(item in self.parts for item in node.all_input_nodes)
            if node.op == "placeholder" and _is_complex(node):
                self.parts[node] = self._stored(node)
            elif node.op == "call_function" and (_is_complex(node) or reads):
                self._split(node)

    def _split(self, node: Node) -> None:
        self.here = node
        with self.graph.inserting_before(node):
            result = self._apply(node)
        if isinstance(result, _Parts):
            self.parts[node] = result
        else:
            node.replace_all_uses_with(result)

    def _apply(self, node: Node) -> Any:
        target, args, kwargs = node.target, self._given(node.args), self._given(node.kwargs)
        if target in _MOVES:
            halves = [
                self.call(target, *_half(args, name), **_half(kwargs, name)) for name in ("real", "imaginary")
            ]
            return _Parts(*halves)
        rule = _RULES.get(target)
        if rule is None:
            raise node_error(node, f"Operator `{target}` on complex numbers has no lowering")
        return rule(self, *args, **kwargs)

    def _given(self, items: Any) -> Any:
        """Arguments with complex nodes replaced by their parts, lists included."""
        if isinstance(items, dict):
            return {name: self._given(item) for name, item in items.items()}
        if isinstance(items, (list, tuple)):
            return type(items)(self._given(item) for item in items)
        return self.parts.get(items, items) if isinstance(items, Node) else items

    def _stored(self, node: Node) -> _Parts:
        """A complex constant or buffer, stored as [.., 2] from now on."""
        item = next(item for item in self.program.graph_signature.input_specs if item.arg.name == node.name)
        for values in (self.program.constants, self.program.state_dict):
            tensor = values.get(item.target or node.name)
            if isinstance(tensor, torch.Tensor):
                break
        else:
            raise node_error(
                node, f"Input `{node.name}` is {node.meta['val'].dtype}, which a NeuronCore lacks",
                hint="Give the real and the imaginary part as two inputs.",
            )  # fmt: skip
        values[item.target or node.name] = torch.view_as_real(tensor.detach().resolve_conj()).contiguous()
        node.meta["val"] = torch.view_as_real(node.meta["val"])
        self.here = node
        with self.graph.inserting_after(self._last_placeholder()):
            imaginary = self.call(aten.select.int, node, -1, 1)
            return _Parts(self.call(aten.select.int, node, -1, 0), imaginary)

    def _last_placeholder(self) -> Node:
        return [node for node in self.graph.nodes if node.op == "placeholder"][-1]

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A new node with its value's shape, placed as the node that it stands for."""
        assert self.here is not None
        node = self.graph.call_function(target, args, kwargs)
        values = torch.fx.node.map_arg(args, lambda item: item.meta["val"])
        named = torch.fx.node.map_arg(kwargs, lambda item: item.meta["val"])
        node.meta = {key: value for key, value in self.here.meta.items() if key != "val"}
        mode = torch._guards.detect_fake_mode([item.meta.get("val") for item in self.graph.nodes])
        assert mode is not None
        with mode:
            node.meta["val"] = target(*values, **named)
        return node


def _half(items: Any, name: str) -> Any:
    """Arguments with one part of each complex one."""
    if isinstance(items, _Parts):
        return getattr(items, name)
    if isinstance(items, dict):
        return {key: _half(item, name) for key, item in items.items()}
    if isinstance(items, (list, tuple)):
        return type(items)(_half(item, name) for item in items)
    return items


def _parts(at: _Splitter, item: Any) -> _Parts:
    """Any operand as two parts; a real one has an imaginary part of zero."""
    if isinstance(item, _Parts):
        return item
    if isinstance(item, complex):
        return _Parts(item.real, item.imag)
    return _Parts(item, 0.0)


def _zero(item: Any) -> bool:
    return isinstance(item, (int, float)) and item == 0


def _add(at: _Splitter, left: Any, right: Any) -> Any:
    if _zero(left) or _zero(right):
        return right if _zero(left) else left
    if not isinstance(left, Node) and not isinstance(right, Node):
        return left + right
    return at.call(aten.add.Tensor, *((left, right) if isinstance(left, Node) else (right, left)))


def _sub(at: _Splitter, left: Any, right: Any) -> Any:
    return left if _zero(right) else _add(at, left, _mul(at, right, -1.0))


def _mul(at: _Splitter, left: Any, right: Any) -> Any:
    if _zero(left) or _zero(right):
        return 0.0
    if not isinstance(left, Node) and not isinstance(right, Node):
        return left * right
    return at.call(aten.mul.Tensor, *((left, right) if isinstance(left, Node) else (right, left)))


def _product(at: _Splitter, left: Any, right: Any) -> _Parts:
    a, b = _parts(at, left), _parts(at, right)
    real = _sub(at, _mul(at, a.real, b.real), _mul(at, a.imaginary, b.imaginary))
    return _full(at, real, _add(at, _mul(at, a.real, b.imaginary), _mul(at, a.imaginary, b.real)))


def _full(at: _Splitter, real: Any, imaginary: Any) -> _Parts:
    """Parts that are both tensors of the same shape."""
    shape = next(item for item in (real, imaginary) if isinstance(item, Node))
    filled = [
        item if isinstance(item, Node) else at.call(aten.full_like.default, shape, float(item))
        for item in (real, imaginary)
    ]
    common = torch.broadcast_shapes(*(item.meta["val"].shape for item in filled))
    return _Parts(
        *(
            item if item.meta["val"].shape == common else at.call(aten.expand.default, item, list(common))
            for item in filled
        )
    )


def _sum(at: _Splitter, left: Any, right: Any, alpha: float = 1) -> _Parts:
    a, b = _parts(at, left), _product(at, right, alpha) if alpha != 1 else _parts(at, right)
    return _full(at, _add(at, a.real, b.real), _add(at, a.imaginary, b.imaginary))


def _difference(at: _Splitter, left: Any, right: Any, alpha: float = 1) -> _Parts:
    a, b = _parts(at, left), _product(at, right, alpha) if alpha != 1 else _parts(at, right)
    return _full(at, _sub(at, a.real, b.real), _sub(at, a.imaginary, b.imaginary))


def _quotient(at: _Splitter, left: Any, right: Any) -> _Parts:
    if not isinstance(right, (_Parts, Node)):
        return _product(at, left, 1 / right)
    if not isinstance(right, _Parts):
        return _product(at, left, at.call(aten.reciprocal.default, right))
    size = _add(at, _mul(at, right.real, right.real), _mul(at, right.imaginary, right.imaginary))
    inverse = at.call(aten.reciprocal.default, size)
    return _product(at, _product(at, left, _conjugate(at, right)), inverse)


def _conjugate(at: _Splitter, x: _Parts) -> _Parts:
    return _Parts(x.real, at.call(aten.neg.default, x.imaginary))


def _from_polar(at: _Splitter, size: Node, angle: Node) -> _Parts:
    cosine, sine = at.call(aten.cos.default, angle), at.call(aten.sin.default, angle)
    return _Parts(at.call(aten.mul.Tensor, size, cosine), at.call(aten.mul.Tensor, size, sine))


def _exponential(at: _Splitter, x: _Parts) -> _Parts:
    return _from_polar(at, at.call(aten.exp.default, x.real), x.imaginary)


def _magnitude(at: _Splitter, x: _Parts) -> Node:
    square = _add(at, _mul(at, x.real, x.real), _mul(at, x.imaginary, x.imaginary))
    return at.call(aten.sqrt.default, square)


def _viewed(at: _Splitter, x: Node) -> _Parts:
    return _Parts(at.call(aten.select.int, x, -1, 0), at.call(aten.select.int, x, -1, 1))


def _stacked(at: _Splitter, x: _Parts) -> Node:
    widened = [at.call(aten.unsqueeze.default, part, -1) for part in (x.real, x.imaginary)]
    return at.call(aten.cat.default, widened, -1)


def _converted(at: _Splitter, x: Any, **options: Any) -> Any:
    """Between real and complex: to complex adds zeros, to real drops the imaginary part."""
    dtype = options.get("dtype")
    if dtype is None or dtype.is_complex:
        return _full(at, x, 0.0) if isinstance(x, Node) else x
    return at.call(aten._to_copy.default, x.real, dtype=dtype)


_RULES: dict[Any, Callable[..., Any]] = {
    aten._conj.default: _conjugate,
    aten._conj_physical.default: _conjugate,
    aten._to_copy.default: _converted,
    aten.abs.default: _magnitude,
    aten.add.Tensor: _sum,
    aten.add.Scalar: _sum,
    aten.angle.default: lambda at, x: at.call(aten.atan2.default, x.imaginary, x.real),
    aten.complex.default: lambda at, real, imaginary: _full(at, real, imaginary),
    aten.conj_physical.default: _conjugate,
    aten.div.Tensor: _quotient,
    aten.div.Scalar: _quotient,
    aten.exp.default: _exponential,
    aten.imag.default: lambda at, x: x.imaginary,
    aten.mul.Tensor: _product,
    aten.mul.Scalar: _product,
    aten.polar.default: _from_polar,
    aten.real.default: lambda at, x: x.real,
    aten.reciprocal.default: lambda at, x: _quotient(at, 1.0, x),
    aten.resolve_conj.default: lambda at, x: x,
    aten.resolve_neg.default: lambda at, x: x,
    aten.scalar_tensor.default: lambda at, value, **options: _Parts(
        at.call(aten.scalar_tensor.default, complex(value).real, dtype=torch.float32),
        at.call(aten.scalar_tensor.default, complex(value).imag, dtype=torch.float32),
    ),
    aten.sub.Tensor: _difference,
    aten.sub.Scalar: _difference,
    aten.view_as_complex.default: _viewed,
    aten.view_as_real.default: _stacked,
}
