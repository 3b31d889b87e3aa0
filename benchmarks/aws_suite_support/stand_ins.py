"""Modules that AWS's suite imports and that are not public, made here from our simulator, NumPy and ml_dtypes.

`nki_cpu_simulator.nki` is the suite's only hook for a simulator: it becomes ours. `neuron_dtypes` and two names of
`neuronxcc` convert dtypes. Two script modules for remote machines are never called in simulation mode.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from neuron_port.simulator import dtypes, install_as_nki
from neuron_port.simulator.loader import MODULES
from neuron_port.simulator.nki.host import InPlace
from neuron_port.simulator.runner import HbmArray, run_ranks

# Half a unit in the last place. Sums of float32 lose some bits more than float32 itself has.
ROUNDOFF = {
    dtypes.float32: 2.0**-18,
    dtypes.float16: 2.0**-11,
    dtypes.bfloat16: 2.0**-9,
    dtypes.tfloat32: 2.0**-11,
}
ROUNDOFF |= dict.fromkeys([*dtypes.FLOAT8, *(dtype for dtype in dtypes.ALL if dtype.is_packed)], 2.0**-4)
# Packed dtypes are numpy records of one field, so that their name travels with the array.
PACKED = {
    "float8_e4m3fn_x4": np.dtype([("float8_e4m3fn_x4", np.uint32)]),
    "float8_e5m2_x4": np.dtype([("float8_e5m2_x4", np.uint32)]),
    "float4_e2m1fn_x4": np.dtype([("float4_e2m1fn_x4", np.uint16)]),
}
np.sctypeDict.update(PACKED)  # tests make placeholders by np.zeros(shape, dtype=nl.float8_e4m3fn_x4)
ELEMENT = {
    "float8_e4m3fn_x4": ml_dtypes.float8_e4m3fn,
    "float8_e5m2_x4": ml_dtypes.float8_e5m2,
    "float4_e2m1fn_x4": ml_dtypes.float4_e2m1fn,
}


@dataclass
class Calls:
    """What the simulator did since the last reset; the plugin reads it after every test."""

    count: int = 0
    seconds: float = 0.0
    processor_seconds: float = (
        0.0  # of all threads; equal to `seconds` on an idle machine with one BLAS thread
    )
    instructions: int = 0
    warnings: list[str] = field(default_factory=list)
    roundoff: float = 0.0  # unit roundoff of the narrowest float that a kernel held anything in

    def reset(self) -> None:
        """Forget the previous test."""
        self.count = self.instructions = 0
        self.seconds = self.processor_seconds = 0.0
        self.warnings = []
        self.roundoff = 0.0


CALLS = Calls()


def cpu_simulate(kernel: Callable[..., Any]) -> Any:
    """The hook's entry: cpu_simulate(kernel)[lnc](**inputs)."""
    return _Launch(kernel)


class _Launch:
    def __init__(self, kernel: Callable[..., Any]) -> None:
        self.kernel = kernel

    def __getitem__(self, lnc: int) -> Callable[..., Any]:
        return lambda **inputs: simulate_ranks(self.kernel, [inputs], lnc)[0]


def simulate_ranks(kernel: Callable[..., Any], inputs: list[dict[str, Any]], lnc: int) -> list[list[Any]]:
    """The outputs of each rank; `inputs` has the arguments of each."""
    import nki

    jitted = kernel if isinstance(kernel, nki.Kernel) else nki.jit(kernel)
    started, processor_started = time.perf_counter(), time.process_time()
    CALLS.count += 1
    try:
        given = [{name: _as_argument(value) for name, value in one.items()} for one in inputs]
        # By run_ranks also for one rank, because a kernel's own arguments may be called `lnc` or `target`.
        arguments = [{name: one.argument for name, one in each.items()} for each in given]
        runs = run_ranks(jitted[lnc], arguments, target=os.environ["NKI_NC_VERSION"])
        for each in given:
            for one in each.values():
                one.write_back()
        for run in runs:
            CALLS.instructions += sum(len(trace) for trace in run.traces)
            CALLS.warnings += run.warnings
            held = {allocation.dtype for trace in run.traces for allocation in trace.allocations}
            CALLS.roundoff = max([CALLS.roundoff, *(ROUNDOFF.get(dtype, 0.0) for dtype in held)])
        return [[_packed(*pair) for pair in zip(run.outputs, run.hbm_outputs, strict=True)] for run in runs]
    finally:
        CALLS.seconds += time.perf_counter() - started
        CALLS.processor_seconds += time.process_time() - processor_started


def _as_argument(value: Any) -> InPlace:
    if isinstance(value, np.ndarray) and value.dtype.names:
        name = value.dtype.names[0]
        one = InPlace(np.ascontiguousarray(value).view(value.dtype[0]))
        one.argument = HbmArray(one.argument.held, dtypes.resolve(name), mutable=True)
        return one
    if isinstance(value, np.ndarray) and value.dtype.itemsize == 8 and value.dtype.kind in "iuf":
        # Devices have no 64-bit types; the framework narrows inputs before the kernel sees them.
        return InPlace(value.astype(f"{value.dtype.kind}4"))
    return InPlace(value)


def _packed(output: np.ndarray, held: HbmArray) -> np.ndarray:
    return output.view(PACKED[str(held.dtype)]) if str(held.dtype) in PACKED else output


# ---- neuron_dtypes ---------------------------------------------------------------------------------------


def numpy_dtype(dtype: Any) -> np.dtype:
    """The numpy dtype of a name, an NKI dtype, or a numpy dtype."""
    if isinstance(dtype, np.dtype):
        return dtype
    if isinstance(dtype, str) and str(dtype) in PACKED:
        return PACKED[str(dtype)]
    if isinstance(dtype, dtypes.DType):
        return np.dtype(np.float32) if dtype is dtypes.tfloat32 else dtype.native
    if isinstance(dtype, str) and dtype in {str(one) for one in dtypes.ALL}:
        return dtypes.resolve(dtype).native
    return np.dtype(dtype)


def static_cast(array: Any, dtype: Any) -> np.ndarray:
    """Convert values; to a packed dtype four neighbours of the last axis become one element, and back."""
    array = np.asarray(array)
    target = numpy_dtype(dtype)
    if array.dtype.names:
        name = array.dtype.names[0]
        bits = np.ascontiguousarray(array).view(array.dtype[0])
        return _unpack(bits, name).astype(target)
    if target.names:
        return _pack(array, target.names[0])
    return array.astype(target)


def _pack(values: np.ndarray, name: str) -> np.ndarray:
    codes = np.ascontiguousarray(values.astype(np.float32).astype(ELEMENT[name])).view(np.uint8)
    groups = codes.reshape(*codes.shape[:-1], codes.shape[-1] // 4, 4)
    if name.startswith("float4"):
        nibbles = groups.astype(np.uint16) & 0xF
        bits = nibbles[..., 0] | nibbles[..., 1] << 4 | nibbles[..., 2] << 8 | nibbles[..., 3] << 12
    else:
        bits = np.ascontiguousarray(groups).view(np.uint32)[..., 0]
    return np.ascontiguousarray(bits).view(PACKED[name])


def _unpack(bits: np.ndarray, name: str) -> np.ndarray:
    if name.startswith("float4"):
        codes = np.stack([(bits >> shift) & 0xF for shift in (0, 4, 8, 12)], axis=-1).astype(np.uint8)
    else:
        codes = np.ascontiguousarray(bits)[..., None].view(np.uint8)
    values = codes.view(ELEMENT[name]).astype(np.float32)
    return values.reshape(*bits.shape[:-1], bits.shape[-1] * 4)


def is_float_type(dtype: Any) -> bool:
    """Whether the dtype holds floating-point numbers."""
    native = numpy_dtype(dtype)
    return not native.names and (native.kind == "f" or native.name.startswith(("bfloat", "float")))


def sizeinbytes(dtype: Any) -> int:
    """Bytes of one element."""
    return numpy_dtype(dtype).itemsize


def finfo(dtype: Any) -> Any:
    """Limits of a floating-point dtype, as numpy states them."""
    return ml_dtypes.finfo(numpy_dtype(dtype))


# ---- script modules for remote machines --------------------------------------------------------------------


class LockStatus(Enum):
    """States of a core lock on a remote machine; never reached in simulation mode."""

    ALLOCATED = 0
    RELEASED = 1
    NO_CORES = 2
    DRAINING = 3
    DRAINED = 4
    UNDRAINED = 5
    FLOCK_TIMEOUT = 6
    ERROR = 7


class LockResult:
    """Answer of a remote lock script; never made in simulation mode."""


def analyze_trace(*_: Any, **__: Any) -> None:
    """Profile analysis of a device run."""
    raise NotImplementedError("profile analysis needs a device and a script that is not public")


def _module(name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []  # type: ignore[attr-defined]  # packages, so that submodules import
    vars(module).update(attributes)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)
    return module


def install() -> None:
    """Put every stand-in into sys.modules."""
    install_as_nki()
    face = sys.modules["nki"]
    face.cpu_simulate = cpu_simulate  # type: ignore[attr-defined]
    _module("nki_cpu_simulator", nki=face)
    for public in MODULES:
        if public != "nki.meta.tensor" and public in sys.modules:
            sys.modules[f"nki_cpu_simulator.{public}"] = sys.modules[public]
    sys.modules["nki_cpu_simulator.nki"] = face
    _module("nki_cpu_simulator.nki.builtin")
    sys.modules["nki_cpu_simulator.nki.language.dtypes"] = sys.modules["nki.dtype"]
    sys.modules["nki.language"].dtypes = sys.modules["nki.dtype"]  # type: ignore[attr-defined]

    natives = {str(one): one.native.type for one in dtypes.ALL if one is not dtypes.bool_}
    _module(
        "neuron_dtypes",
        **natives | PACKED,
        static_cast=static_cast,
        is_float_type=is_float_type,
        sizeinbytes=sizeinbytes,
        finfo=finfo,
    )
    for name in ("neuronxcc", "neuronxcc.starfish", "neuronxcc.starfish.support", "neuronxcc.nki"):
        _module(name)
    _module("neuronxcc.starfish.support.dtype", static_cast=static_cast)
    sys.modules["neuronxcc.nki.typing"] = sys.modules["nki.typing"]
    sys.modules["neuronxcc.nki"].typing = sys.modules["nki.typing"]  # type: ignore[attr-defined]

    _module("test.utils.scripts")
    _module("test.utils.scripts.remote_lock_scripts", LockStatus=LockStatus, LockResult=LockResult)
    _module("test.utils.perf_analysis_private", analyze_trace=analyze_trace)
