"""Which tiers can judge here, and in one sentence why one cannot.

Only the simulator's tier has been run so far. The official tier is written against AWS's public documentation of
`nki.simulate` and has not been executed: their package is not published where we could install it.
"""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neuron_port.sandbox.gate import inspect_source
from neuron_port.sandbox.job import CallOutcome, Failure, SandboxJob, SandboxOutcome

TierName = Literal["lint", "simulator", "official", "device"]
DEVICES = Path("/dev")


@dataclass(frozen=True, kw_only=True)
class TierStatus:
    """One tier; `reason` says why it is not there."""

    name: TierName
    available: bool
    reason: str = ""


def available_tiers(devices: Path = DEVICES) -> tuple[TierStatus, ...]:
    """All tiers from the weakest to the strongest."""
    return (
        TierStatus(name="lint", available=True),
        TierStatus(name="simulator", available=True),
        _official_status(),
        _device_status(devices),
    )


def _official_status() -> TierStatus:
    if importlib.util.find_spec("nki") is None:
        return TierStatus(name="official", available=False, reason="AWS's package `nki` is not installed")
    try:
        version = metadata.version("nki")
    except metadata.PackageNotFoundError:
        return TierStatus(
            name="official",
            available=False,
            reason="a module `nki` is there, and no package `nki` is installed",
        )
    if importlib.util.find_spec("nki.isa") is None:  # the name is held on PyPI by a package without contents
        return TierStatus(
            name="official",
            available=False,
            reason=f"the package `nki` {version} is a placeholder: it has no nki.isa",
        )
    return TierStatus(name="official", available=True)


def _device_status(devices: Path) -> TierStatus:
    if not list(devices.glob("neuron[0-9]*")):
        return TierStatus(
            name="device", available=False, reason=f"no Neuron device: {devices}/neuron0 is not there"
        )
    return TierStatus(
        name="device",
        available=False,
        reason="a Neuron device is there; grading on devices is not written yet, so verdicts stay with the simulator",
    )


class OfficialTier:
    """Runs the calls of a job on AWS's `nki.simulate`, each job in a child process of its own.

    The source passes our gate first. Arrays travel through files; the child's output is not read. Not executed yet:
    it follows the public documentation of nki.simulate (NKI 0.6), a function that wraps a kernel and takes arrays.
    """

    def __init__(self, timeout_seconds: float = 600.0) -> None:
        self.timeout_seconds = timeout_seconds

    def run(self, job: SandboxJob) -> SandboxOutcome:
        """The outcome of all calls; a call without a file of outputs has failed."""
        refused = inspect_source(job.source, job.entry_point)
        if refused is not None:
            return SandboxOutcome(calls=(), failure=refused)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            (place / "kernel.py").write_text(job.source)
            (place / "child.py").write_text(_CHILD)
            for number, call in enumerate(job.calls):
                with (place / f"call{number}.pickle").open("wb") as file:
                    pickle.dump((call.arrays, dict(call.attributes)), file)
            command = [sys.executable, "-I", "child.py", job.entry_point, str(len(job.calls))]
            try:
                subprocess.run(
                    command, cwd=place, check=False, capture_output=True, timeout=self.timeout_seconds
                )
            except subprocess.TimeoutExpired:
                limit = Failure(
                    kind="time", error_class="wall time", message=f"more than {self.timeout_seconds:g} s"
                )
                return SandboxOutcome(calls=(), failure=limit)
            return SandboxOutcome(
                calls=tuple(_read(place / f"result{number}.npz") for number in range(len(job.calls)))
            )


def _read(path: Path) -> CallOutcome:
    """Outputs that the child left: plain arrays only, never pickled objects."""
    if not path.is_file():
        return CallOutcome(
            failure=Failure(
                kind="protocol", error_class="missing outputs", message="nki.simulate gave no outputs"
            )
        )
    with np.load(path, allow_pickle=False) as held:
        names = sorted(name for name in held.files if name.startswith("output"))
        return CallOutcome(outputs=tuple(_typed(held[name], str(held[f"dtype_{name}"])) for name in names))


def _typed(array: np.ndarray, dtype: str) -> Any:
    import ml_dtypes

    return array.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else array


# Runs in the child, apart from this package: the kernel's module must see AWS's nki and nothing of ours.
_CHILD = """\
import pickle, runpy, sys
import numpy as np
import nki

entry_point, calls = sys.argv[1], int(sys.argv[2])
kernel = runpy.run_path("kernel.py")[entry_point]
for number in range(calls):
    with open(f"call{number}.pickle", "rb") as file:
        arrays, attributes = pickle.load(file)
    result = nki.simulate(kernel)(*arrays, **attributes)
    kept = {}
    for place, output in enumerate(result if isinstance(result, (tuple, list)) else (result,)):
        output = np.asarray(output)
        kept[f"dtype_output{place}"] = np.array(str(output.dtype))
        kept[f"output{place}"] = output.view(np.uint16) if str(output.dtype) == "bfloat16" else output
    np.savez(f"result{number}.npz", **kept)
"""
