"""An instance with stand-ins for the compiler, nki and nrtpy, on which the tests finish bundles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuron_port.build import load_manifest

FAKES = Path(__file__).parent / "fakes"
PROJECT = Path(__file__).parents[2]


@dataclass
class Instance:
    """A machine whose PATH has a stand-in compiler; `finish` runs the bundle's finish.py without site."""

    home: Path
    bundle: Path
    version: str = "2.27.5334.0"
    fail: dict[str, str] = field(default_factory=dict)
    refused_kernels: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.home / "bin").mkdir(parents=True)
        self._script("bin/neuronx-cc", f'exec {sys.executable} -S {FAKES / "neuronx_cc.py"} "$@"')
        for name in ("nki", "nrtpy", "torch"):
            path = f"{FAKES / f'{name}_environment'}:{PROJECT}"
            self._script(f"{name}-python", f'PYTHONPATH={path} exec {sys.executable} -W ignore "$@"')

    def _script(self, name: str, line: str) -> None:
        path = self.home / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-I", "-S", str(self.bundle / "build" / "finish.py"), *arguments]

    def variables(self) -> dict[str, str]:
        steer = {
            "version": self.version, "fail": self.fail, "refused_kernels": self.refused_kernels,
            "io": str(self.bundle / "graphs"), "calls": str(self.home / "calls"),
        }  # fmt: skip
        path = f"{self.home / 'bin'}:/usr/bin:/bin"
        return {
            "PATH": path,
            "FAKE_CC": json.dumps(steer),
            "NEURON_CC_FLAGS": "--nonsense",
            **self.environment,
        }

    def finish(self, *arguments: str, target: str = "trn2") -> subprocess.CompletedProcess[str]:
        # No device nodes unless a test makes one: the machine that runs the tests may have real ones.
        nodes = ("--device-nodes", str(self.home / "neuron*"))
        return subprocess.run(
            self.command("--target", target, *nodes, *arguments), capture_output=True, text=True, timeout=120,
            env=self.variables(), cwd=self.home, check=False,
        )  # fmt: skip

    def status(self) -> subprocess.CompletedProcess[str]:
        """What finish.py --status says."""
        return subprocess.run(
            self.command("--status"),
            capture_output=True,
            text=True,
            timeout=120,
            env=self.variables(),
            check=False,
        )

    def stop_while_compiling(self, number: int, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Start finishing, wait until a compilation hangs, and send the signal to finish.py alone."""
        process = subprocess.Popen(
            self.command("--target", "trn2", "--jobs", "1", *arguments), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=self.variables(), cwd=self.home, start_new_session=True,
        )  # fmt: skip
        hanging = self.home / "calls.hanging"
        while not hanging.exists() and process.poll() is None:
            time.sleep(0.02)
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    @property
    def calls(self) -> list[dict[str, Any]]:
        path = self.home / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def manifest(self) -> dict[str, Any]:
        return load_manifest(self.bundle)

    @property
    def nki(self) -> tuple[str, str]:
        return "--nki-python", str(self.home / "nki-python")

    @property
    def torch(self) -> tuple[str, ...]:
        return "--engine", "trace", "--torch-python", str(self.home / "torch-python")

    @property
    def device(self) -> tuple[str, str]:
        """Make a device appear, and name the environment that can run it."""
        (self.home / "neuron0").touch()
        return "--nrtpy-python", str(self.home / "nrtpy-python")
