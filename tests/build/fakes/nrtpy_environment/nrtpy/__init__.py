"""A stand-in for `nrtpy`, strict where its documents are; its NEFFs hold HLO, which it runs on XLA-CPU.

FAKE_NRTPY_ERROR (a number) is added to the first output, to play a device that is wrong; "hang" never returns.
"""

import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np

from neuron_port.lower import ParallelExecutable, XlaExecutable


class NrtpyError(RuntimeError):
    pass


class NrtError(RuntimeError):
    pass


_VISIBLE = None
_ACTIVE = False
_MEETING = {}  # neff path -> the ranks that have arrived at a collective call


def configure(visible_cores=None):
    global _VISIBLE
    if _ACTIVE:
        raise RuntimeError("configure() after the runtime was started")
    if isinstance(visible_cores, int):
        raise TypeError("visible_cores must be an iterable of integers")
    _VISIBLE = None if visible_cores is None else [int(core) for core in visible_cores]


def _use(core_id):
    global _ACTIVE
    _ACTIVE = True
    if _VISIBLE is not None and core_id not in range(len(_VISIBLE)):
        raise NrtError(f"NRT_INVALID(2): core {core_id} is not among the visible cores {_VISIBLE}")


class NrtpyTensor:
    def __init__(self, array, name, core_id):
        self._array, self.name, self.shape, self.dtype = array, name, array.shape, array.dtype
        self._core_id = core_id

    @classmethod
    def from_numpy(cls, array, name=None, core_id=0):
        if type(array) is not np.ndarray:
            raise TypeError(f"from_numpy takes a numpy.ndarray, not {type(array).__name__}")
        _use(core_id)
        return cls(np.ascontiguousarray(array).reshape(array.shape).copy(), name, core_id)

    def write_from_numpy(self, array):
        if array.nbytes != self._array.nbytes:
            raise ValueError("byte size differs")
        self._array = np.frombuffer(np.ascontiguousarray(array).tobytes(), self._array.dtype).reshape(
            self.shape
        )

    def numpy(self):
        return self._array.copy().view(f"V{self._array.itemsize}")  # libnrt does not report dtypes


def _dtype(name):
    return np.dtype(getattr(ml_dtypes, name)) if name.startswith(("bfloat", "float8")) else np.dtype(name)


class NrtpyModel:
    def __init__(self, path, core_id, rank_id, world_size):
        described, _, hlo = Path(path).read_bytes()[1024:].partition(b"\0")
        described = json.loads(described)
        self._inputs, self._outputs, aliases = described["inputs"], described["outputs"], described["aliases"]
        self._path, self._core_id, self._rank, self._ranks = str(path), core_id, rank_id, world_size
        self._suffixed = {name: f"{name}.must_alias_input" for name in aliases.values()}
        self._aliases = {output: self._suffixed[name] for output, name in aliases.items()}
        self.input_tensors_info = {
            self._suffixed.get(name, name): _info(*of) for name, of in self._inputs.items()
        }
        self.output_tensors_info = {name: _info(*of) for name, of in self._outputs.items()}
        if world_size == 1:
            self._run = XlaExecutable(hlo, optimize=False)
        elif rank_id == 0:
            self._run = ParallelExecutable(hlo, ranks=world_size)

    @classmethod
    def load_from_neff(cls, neff_path, name=None, core_id=0, cc_enabled=False, rank_id=0, world_size=1):
        if not Path(neff_path).is_file():
            raise NrtError("NRT Error NRT_FAILURE(1): Failed to load model")
        _use(core_id)
        if cc_enabled != (world_size > 1) or not 0 <= rank_id < world_size:
            raise NrtError(f"NRT_INVALID(2): cc_enabled {cc_enabled}, rank {rank_id} of {world_size}")
        return cls(neff_path, core_id, rank_id, world_size)

    def __call__(self, inputs, outputs=None, save_trace=False, ntff_name=None):
        if set(inputs) != set(self.input_tensors_info) or set(outputs) != set(self.output_tensors_info):
            raise NrtError(f"NRT_INVALID: names {sorted(inputs)} {sorted(outputs)}")
        for given, known in ((inputs, self.input_tensors_info), (outputs, self.output_tensors_info)):
            for name, tensor in given.items():
                if not isinstance(tensor, NrtpyTensor):
                    raise TypeError(f"{name} is a {type(tensor).__name__}, not a NrtpyTensor")
                if tensor._core_id != self._core_id:
                    raise NrtError(
                        f"NRT_INVALID: {name} is on core {tensor._core_id}, the model on {self._core_id}"
                    )
                if tensor._array.nbytes != known[name].size:
                    raise NrtError(
                        f"NRT_INVALID: {name} has {tensor._array.nbytes} bytes, not {known[name].size}"
                    )
        for output, name in self._aliases.items():
            if outputs[output] is not inputs[name]:
                raise NrtError("NRT_INVALID: an aliased output must be its input's tensor")
        if os.environ.get("FAKE_NRTPY_ERROR") == "hang":
            time.sleep(600)
        arrays = []
        for name, (dtype, shape) in self._inputs.items():
            raw = inputs[self._suffixed.get(name, name)]._array
            arrays.append(np.frombuffer(raw.tobytes(), _dtype(dtype)).reshape(shape))
        results = self._together(arrays) if self._ranks > 1 else self._run(*arrays)
        wrong = np.float32(os.environ.get("FAKE_NRTPY_ERROR", "0"))
        for number, (name, result) in enumerate(zip(self._outputs, results, strict=True)):
            changed = (result.astype(np.float32) + wrong).astype(result.dtype) if number == 0 else result
            outputs[name].write_from_numpy(changed)

    def _together(self, arrays):
        """What this rank gets when all ranks have called: a call alone would wait for ever on a device."""
        meeting = _MEETING.setdefault(self._path, SimpleNamespace(
            barrier=threading.Barrier(self._ranks, timeout=60), arrays={}, results=None))  # fmt: skip
        meeting.arrays[self._rank] = arrays
        meeting.barrier.wait()
        if self._rank == 0:
            given = [
                [meeting.arrays[rank][number] for rank in range(self._ranks)] for number in range(len(arrays))
            ]
            meeting.results = self._run(*given)
        meeting.barrier.wait()
        return [parts[self._rank] for parts in meeting.results]

    def benchmark(self, inputs, outputs=None, warmup_iter=5, benchmark_iter=5, mode="device"):
        if mode not in ("device", "host") or benchmark_iter < 1:
            raise ValueError(f"mode {mode}, benchmark_iter {benchmark_iter}")
        if mode == "device":
            raise RuntimeError("no device execution events were captured")
        return SimpleNamespace(
            mean_ms=1.0,
            min_ms=0.9,
            max_ms=1.1,
            std_dev_ms=0.05,
            iterations=benchmark_iter,
            warmup_iterations=warmup_iter,
        )


def _info(dtype, shape):
    return SimpleNamespace(shape=tuple(shape), size=int(np.prod(shape, dtype=int)) * _dtype(dtype).itemsize)
