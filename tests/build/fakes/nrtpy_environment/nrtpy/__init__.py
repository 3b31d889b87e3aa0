"""A stand-in for `nrtpy` as documented; its only model computes (x * gamma) @ w and cache + 1.

FAKE_NRTPY_ERROR (a number) is added to the result, to play a device that is wrong.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np


class NrtError(RuntimeError):
    pass


class NrtpyTensor:
    def __init__(self, array, name):
        self._array, self.name, self.shape, self.dtype = array, name, array.shape, array.dtype

    @classmethod
    def from_numpy(cls, array, name=None, core_id=0):
        return cls(np.ascontiguousarray(array).copy(), name)

    def write_from_numpy(self, array):
        if array.nbytes != self._array.nbytes:
            raise ValueError("byte size differs")
        self._array[...] = array

    def numpy(self):
        return self._array.copy().view(f"V{self._array.itemsize}")  # libnrt does not report dtypes


class NrtpyModel:
    def __init__(self, inputs):
        self.input_tensors_info = {name: SimpleNamespace(name=name) for name in inputs}
        self.output_tensors_info = {"y": SimpleNamespace(), "cache_out": SimpleNamespace()}

    @classmethod
    def load_from_neff(cls, neff_path, name=None, core_id=0, cc_enabled=False, rank_id=0, world_size=1):
        payload = json.loads(Path(neff_path).read_bytes()[1024:])
        renamed = ["cache.must_alias_input" if name == "cache" else name for name in payload["inputs"]]
        return cls(renamed)

    def __call__(self, inputs, outputs=None, save_trace=False, ntff_name=None):
        if set(inputs) != set(self.input_tensors_info) or set(outputs) != set(self.output_tensors_info):
            raise NrtError(f"NRT_INVALID: names {sorted(inputs)} {sorted(outputs)}")
        if outputs["cache_out"] is not inputs["cache.must_alias_input"]:
            raise NrtError("NRT_INVALID: an aliased output must be its input's tensor")
        x, gamma, w = (inputs[name]._array for name in ("x", "gamma", "w"))
        outputs["y"].write_from_numpy((x * gamma) @ w + np.float32(os.environ.get("FAKE_NRTPY_ERROR", "0")))
        outputs["cache_out"].write_from_numpy(outputs["cache_out"]._array + 1)

    def benchmark(self, inputs, outputs=None, warmup_iter=5, benchmark_iter=5, mode="device"):
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
