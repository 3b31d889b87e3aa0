"""Executes HloModuleProto bytes on the CPU through XLA: the proof that a graph computes what its model does.

jaxlib has no public interface for this without jax, so every use of its private one stands in this file.
Weights are not copied: XLA reads the NumPy array itself when its memory is aligned to 64 bytes (torch's
allocations are).
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from neuron_port.errors import LoweringError, NeuronPortError
from neuron_port.lower.module import read_module
from neuron_port.types import TensorSpec

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]
Buffer = Any  # memory that XLA owns, or borrows from a NumPy array
_ML_DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")
}


class XlaExecutable:
    """A graph compiled for the CPU. Call it with its inputs in order; `bind` fixes some of them beforehand.

    Args:
        hlo: serialized HloModuleProto.
        optimize: False compiles faster and runs slower; results may differ in the last bits.
        fuse: False keeps operators apart. A graph that writes a state and reads it back is then written in place;
            fused, XLA computes the write once for each reader and copies the whole state each time. Compiling
            takes several times as long.
    Raises: LoweringError when XLA refuses the graph, NeuronPortError when jaxlib is not installed.
    """

    def __init__(self, hlo: bytes, *, optimize: bool = True, fuse: bool = True) -> None:
        module = read_module(hlo)
        parameters, root = module.entry.parameters, module.entry.root
        self.name = module.name
        self.inputs: dict[str, TensorSpec] = {
            name or f"parameter {number}": item.shape.spec
            for number, (name, item) in enumerate(zip(module.input_names, parameters, strict=True))
        }
        self.outputs = tuple(shape.spec for shape in (root.shape.elements or (root.shape,)))
        self._written = frozenset(list(self.inputs)[alias.parameter] for alias in module.aliases)
        self._bound: dict[str, Any] = {}
        targets = {
            item.attributes.get("custom_call_target", "")
            for _, item in module.instructions()
            if item.opcode == "custom-call"
        }
        if len(self.outputs) == 1 and module.aliases:
            # XLA's converter unpacks a tuple of one but keeps the alias's index into it; results do not
            # depend on it.
            hlo = replace(module, aliases=()).to_bytes()
        self._loaded = _compile(hlo, module.name, sorted(targets), optimize=optimize, fuse=fuse)

    @property
    def free_inputs(self) -> dict[str, TensorSpec]:
        """The inputs that a call still has to give, in order."""
        return {name: spec for name, spec in self.inputs.items() if name not in self._bound}

    def bind(self, weights: Mapping[str, Array]) -> XlaExecutable:
        """The same executable with the named inputs fixed. Aligned arrays are not copied: do not alter them.

        Raises LoweringError for a name that is no input, an input that the graph writes, or another type.
        """
        bound = object.__new__(XlaExecutable)
        bound.__dict__.update(self.__dict__)
        bound._bound = dict(self._bound)
        for name, array in weights.items():
            if name not in self.inputs:
                hint = "Inputs are " + ", ".join(self.inputs) + "."
                raise LoweringError(f"Graph `{self.name}` has no input `{name}`", hint=hint)
            if name in self._written:
                hint = "Give it with every call: its buffer is used up by the call."
                raise LoweringError(f"Input `{name}` of graph `{self.name}` is written in place", hint=hint)
            bound._bound[name] = self._put(name, array)
        return bound

    def __call__(self, *arrays: Array) -> tuple[Array, ...]:
        """The graph's results for its free inputs, in order; int64 is narrowed to the graph's int32."""
        free = self.free_inputs
        if len(arrays) != len(free):
            raise LoweringError(
                f"Graph `{self.name}` takes {len(free)} inputs, got {len(arrays)}",
                hint="In order: " + ", ".join(f"{name} {spec}" for name, spec in free.items()) + ".",
            )
        given = {name: self._put(name, array) for name, array in zip(free, arrays, strict=True)}
        return tuple(_to_numpy(result) for result in self.run(given))

    def put(self, name: str, array: Array) -> Buffer:
        """`array` as a buffer that `run` takes for the named input; a copy if the graph writes over it."""
        return self._put(name, array)

    def run(self, given: Mapping[str, Buffer]) -> tuple[Buffer, ...]:
        """The graph's results as buffers, for buffers of its free inputs by name: nothing is copied.

        A buffer of an input that the graph writes in place is used up, and the result is that memory: hand the
        result to the next call to keep a state where it is. Results are computed in the background;
        `buffer_to_numpy` waits for one.

        Raises: LoweringError when an input is missing.
        """
        if missing := [name for name in self.free_inputs if name not in given]:
            raise LoweringError(
                f"Graph `{self.name}` was not given `{missing[0]}`", hint=f"Missing: {', '.join(missing)}."
            )
        buffers = [self._bound[name] if name in self._bound else given[name] for name in self.inputs]
        results = self._loaded.execute_sharded(buffers).disassemble_into_single_device_arrays()
        return tuple(result[0] for result in results)

    def _put(self, name: str, array: Array) -> Any:
        spec = self.inputs[name]
        narrowed = _narrow(array, spec) if array.dtype == np.int64 and spec.dtype == "int32" else array
        if narrowed.shape != spec.shape or narrowed.dtype != _numpy_dtype(spec.dtype):
            raise LoweringError(
                f"Input `{name}` of graph `{self.name}` is {spec}, got {array.dtype}{array.shape}"
            )
        return _to_device(narrowed, copy=name in self._written)


def buffer_to_numpy(buffer: Buffer) -> Array:
    """The buffer's values as a NumPy array, once they are computed."""
    return _to_numpy(buffer)


def from_torch(tensor: torch.Tensor) -> Array:
    """The tensor's memory as a NumPy array; bfloat16 and float8 through ml_dtypes."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    source = tensor.detach()
    if dtype not in _ML_DTYPES:
        return source.numpy()
    import torch

    raw = source.contiguous().view(torch.int16 if dtype == "bfloat16" else torch.uint8)
    return raw.numpy().view(_ML_DTYPES[dtype])


def to_torch(array: Array) -> torch.Tensor:
    """The array as a torch tensor of the same dtype, copied where its memory is read-only."""
    import torch

    writable = array if array.flags.writeable else array.copy()
    for name, dtype in _ML_DTYPES.items():
        if array.dtype == dtype:
            raw = torch.from_numpy(writable.view(np.int16 if dtype.itemsize == 2 else np.uint8))
            return raw.view(getattr(torch, name))
    return torch.from_numpy(writable)


def _numpy_dtype(name: str) -> np.dtype[Any]:
    return _ML_DTYPES.get(name) or np.dtype(name)


def _narrow(array: Array, spec: TensorSpec) -> Array:
    if array.size and (array.min() < -(2**31) or array.max() >= 2**31):
        raise LoweringError(f"Input {spec} got int64 values beyond 32 bits: {array.min()} .. {array.max()}")
    return array.astype(np.int32)


# -- jaxlib, private from here on ---------------------------------------------------------------------------


def _xla_client() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # XLA announces its devices on stderr otherwise
    try:
        from jaxlib import xla_client
    except ImportError as error:
        raise NeuronPortError(
            "Executing HLO on the CPU needs jaxlib, which is not installed",
            hint="pip install neuron-port[verify]",
        ) from error
    return xla_client


@functools.cache
def _device() -> Any:
    return _xla_client().make_cpu_client().local_devices()[0]


def _compile(hlo: bytes, name: str, custom_calls: list[str], *, optimize: bool, fuse: bool) -> Any:
    client = _xla_client()
    options = client.CompileOptions()
    if not optimize:
        options.executable_build_options.debug_options.xla_backend_optimization_level = 0
        options.executable_build_options.debug_options.xla_llvm_disable_expensive_passes = True
    if not fuse:
        options.executable_build_options.debug_options.xla_disable_hlo_passes = "fusion"
    try:
        program = client._xla.mlir.hlo_to_stablehlo(hlo)
        return _device().client.compile_and_load(program, [_device()], options)
    except (client.XlaRuntimeError, ValueError) as error:
        if custom_calls:
            raise LoweringError(
                f"XLA-CPU refuses graph `{name}`: kernels without a CPU form: {', '.join(custom_calls)}",
                hint="Lower the program through inline_references to execute it on the CPU.",
            ) from error
        reason = str(error).strip().splitlines()[0]
        raise LoweringError(
            f"XLA-CPU refuses graph `{name}`: {reason}", hint="This is a bug of the emitter."
        ) from error


@functools.cache
def _sharding() -> Any:
    client = _xla_client()

    class OneDevice(client.SingleDeviceSharding):  # type: ignore[name-defined]
        """What jax's own sharding objects answer, for one CPU device."""

        memory_kind = None

        def _to_xla_hlo_sharding(self, rank: int) -> Any:
            return client.HloSharding.replicate()

    return OneDevice(_device())


class _Abstract:
    """Stands for jax's abstract value: what batched_device_put asks for."""

    weak_type = False

    def __init__(self, array: Array) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self.size = math.prod(array.shape)


def _to_device(array: Array, *, copy: bool) -> Any:
    """The array as an XLA buffer; a copy where the graph writes, so that the caller's stays as it is."""
    client = _xla_client()
    contiguous = np.ascontiguousarray(array).reshape(array.shape)
    semantics = client.HostBufferSemantics
    return client.batched_device_put(
        _Abstract(contiguous),
        _sharding(),
        [contiguous],
        [_device()],
        enable_x64=True,
        force_copy=copy,
        host_buffer_semantics=semantics.IMMUTABLE_ONLY_DURING_CALL if copy else semantics.ZERO_COPY,
    )


def _to_numpy(buffer: Any) -> Array:
    array: Array = buffer._single_device_array_to_np_array_did_copy()[0]
    return array
