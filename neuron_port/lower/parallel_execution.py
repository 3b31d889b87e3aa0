"""Executes one graph on several CPU devices at once, each with inputs of its own: tensor-parallel ranks.

Every rank is a replica of the same program; collectives meet inside XLA. The rest is as in `execution`, whose way to
jaxlib's private interface is used here too: the two files are all there is of it.

R = ranks.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from neuron_port.errors import LoweringError
from neuron_port.lower.execution import (
    Array,
    Buffer,
    _Abstract,
    _narrow,
    _numpy_dtype,
    _to_numpy,
    _xla_client,
)
from neuron_port.lower.module import Module, read_module
from neuron_port.types import TensorSpec

COLLECTIVES = ("all-reduce", "all-gather")


class ParallelExecutable:
    """A graph compiled for R CPU devices. Call it with R arrays for each input; `bind` fixes some of them beforehand.

    Raises: LoweringError when XLA refuses the graph, or the graph's groups are not those of R ranks; NeuronPortError
        when jaxlib is not installed.
    """

    def __init__(self, hlo: bytes, *, ranks: int) -> None:
        module = read_module(hlo)
        parameters, root = module.entry.parameters, module.entry.root
        _check_groups(module, ranks)
        self.name, self.ranks = module.name, ranks
        self.inputs: dict[str, TensorSpec] = {
            name: item.shape.spec for name, item in zip(module.input_names, parameters, strict=True)
        }
        self.outputs = tuple(shape.spec for shape in (root.shape.elements or (root.shape,)))
        self._written = frozenset(list(self.inputs)[alias.parameter] for alias in module.aliases)
        self._bound: dict[str, Buffer] = {}
        if len(self.outputs) == 1 and module.aliases:  # as in XlaExecutable
            hlo = replace(module, aliases=()).to_bytes()
        self._loaded = _compile(hlo, module.name, ranks)

    def bind(self, weights: Mapping[str, Sequence[Array]]) -> ParallelExecutable:
        """The same executable with the named inputs fixed, R arrays each. Aligned arrays are not copied."""
        bound = object.__new__(ParallelExecutable)
        bound.__dict__.update(self.__dict__)
        bound._bound = dict(self._bound)
        for name, arrays in weights.items():
            if name not in self.inputs or name in self._written:
                raise LoweringError(f"Graph `{self.name}` has no input `{name}` that can be fixed")
            bound._bound[name] = self._put(name, arrays)
        return bound

    def __call__(self, *arrays: Sequence[Array]) -> tuple[list[Array], ...]:
        """For each of the graph's results R arrays, of its free inputs in order, R arrays each."""
        free = [name for name in self.inputs if name not in self._bound]
        if len(arrays) != len(free):
            raise LoweringError(
                f"Graph `{self.name}` takes {len(free)} inputs, got {len(arrays)}",
                hint=f"In order: {', '.join(free)}.",
            )
        given = {name: self._put(name, item) for name, item in zip(free, arrays, strict=True)}
        buffers = [self._bound[name] if name in self._bound else given[name] for name in self.inputs]
        results = self._loaded.execute_sharded(buffers).disassemble_into_single_device_arrays()
        return tuple([_to_numpy(part) for part in parts] for parts in results)

    def _put(self, name: str, arrays: Sequence[Array]) -> Buffer:
        spec = self.inputs[name]
        if len(arrays) != self.ranks:
            raise LoweringError(
                f"Input `{name}` of graph `{self.name}` needs one array for each of {self.ranks} ranks, got {len(arrays)}"
            )
        narrowed = [
            _narrow(array, spec) if array.dtype == np.int64 and spec.dtype == "int32" else array
            for array in arrays
        ]
        for rank, array in enumerate(narrowed):
            if array.shape != spec.shape or array.dtype != _numpy_dtype(spec.dtype):
                raise LoweringError(
                    f"Input `{name}` of graph `{self.name}` is {spec}, rank {rank} got {array.dtype}{array.shape}"
                )
        return _to_devices(narrowed, copy=name in self._written)


def _check_groups(module: Module, ranks: int) -> None:
    """XLA would wait for ever for a rank that is not there."""
    for _, item in module.instructions():
        if item.opcode not in COLLECTIVES:
            continue
        groups = [list(group.get("replica_ids", ())) for group in item.attributes.get("replica_groups", ())]
        if groups != [list(range(ranks))]:
            raise LoweringError(
                f"Graph `{module.name}` exchanges among {groups}, and is run by the ranks 0 .. {ranks - 1}",
                hint=f"Run it with {len(groups[0]) if groups else 1} ranks.",
            )


@functools.cache
def _devices(ranks: int) -> Any:
    """That many CPU devices, of a client of their own: the one-device client stays as it is."""
    return _xla_client().make_cpu_client(num_devices=ranks).local_devices()


def _compile(hlo: bytes, name: str, ranks: int) -> Any:
    client, devices = _xla_client(), _devices(ranks)
    options = client.CompileOptions()
    options.num_replicas = options.executable_build_options.num_replicas = ranks
    assignment = client.DeviceAssignment.create(np.arange(ranks)[:, None])
    options.device_assignment = options.executable_build_options.device_assignment = assignment
    try:
        program = client._xla.mlir.hlo_to_stablehlo(hlo)
        return devices[0].client.compile_and_load(program, client.DeviceList(tuple(devices)), options)
    except (client.XlaRuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LoweringError(
            f"XLA-CPU refuses graph `{name}` on {ranks} devices: {reason}",
            hint="This is a bug of the emitter.",
        ) from error


@functools.cache
def _sharding(ranks: int, axes: int) -> Any:
    """Each device its own array. XLA puts one array on all devices of what it calls replicated, so ours are tiles.

    A scalar has no axis to be cut along: it is the same for all ranks.
    """
    client = _xla_client()
    kinds = client.HloSharding
    tiles = kinds.iota_tile(dims=(ranks, *[1] * (axes - 1))) if axes else kinds.replicate()
    return client.GSPMDSharding(client.DeviceList(tuple(_devices(ranks))), tiles)


def _to_devices(arrays: Sequence[Array], *, copy: bool) -> Buffer:
    client = _xla_client()
    contiguous = [np.ascontiguousarray(array).reshape(array.shape) for array in arrays]
    if copy:  # XLA does not take one memory for two devices when it is to copy it
        contiguous = [array.copy() for array in contiguous]
    first = contiguous[0]
    whole = _Abstract(first)
    if first.ndim:
        shape: tuple[int, ...] = first.shape
        whole.shape, whole.size = (len(arrays) * shape[0], *shape[1:]), len(arrays) * first.size
    semantics = client.HostBufferSemantics
    return client.batched_device_put(
        whole,
        _sharding(len(arrays), first.ndim),
        contiguous,
        list(_devices(len(arrays))),
        enable_x64=True,
        force_copy=copy,
        host_buffer_semantics=semantics.IMMUTABLE_ONLY_DURING_CALL if copy else semantics.ZERO_COPY,
    )
