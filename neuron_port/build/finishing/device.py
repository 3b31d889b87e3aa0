"""Step 5a: where a device is, the bundle's NEFFs are run on it by another interpreter (`run_on_device`)."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .build import Build
from .files import FINISH, read_json, write_json
from .tables import FAMILIES


def instance_type() -> str:
    """The EC2 instance type that the firmware states, or "unknown"."""
    with contextlib.suppress(OSError):
        name = Path("/sys/devices/virtual/dmi/id/product_name").read_text(encoding="utf-8").strip()
        if re.fullmatch(r"[a-z][a-z0-9-]*\.[a-z0-9-]+", name):
            return name
    return "unknown"


def device_obstacle(device_nodes: str, target: str, instance: str, nrtpy_python: str) -> str:
    """Why NEFFs for `target` cannot be run here, or ""."""
    pattern = Path(device_nodes)
    if not any(pattern.parent.glob(pattern.name)):
        return f"there is no Neuron device here ({device_nodes})"
    family = instance.partition(".")[0]
    if family != "unknown" and family not in FAMILIES[target]:
        return f"this is a {instance}, which cannot run NEFFs for {target}"
    code = "import nrtpy, numpy; nrtpy.NrtpyModel, nrtpy.NrtpyTensor"
    try:
        answer = subprocess.run(
            [nrtpy_python, "-c", code], capture_output=True, text=True, timeout=300, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{nrtpy_python} does not run: {error}"
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        return (
            f"nrtpy cannot be imported by {nrtpy_python} ({last}); --nrtpy-python names another interpreter"
        )
    return ""


def check_on_device(
    build: Build, graphs: Sequence[str], nrtpy_python: str, weights: Path | None
) -> dict[str, Any]:
    """Run `finish.py _device` in the nrtpy environment; return its report.

    The report has "graphs", or "problem" (nothing could be tried), or "failed" (the device or nrtpy gave up).
    """
    folder = build.work / "device"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    request = {
        "bundle": str(build.bundle.folder), "graphs": list(graphs),
        "weights": None if weights is None else str(weights.resolve()),
        "target": build.target,
    }  # fmt: skip
    write_json(folder / "request.json", request)
    command = [nrtpy_python, str(FINISH), "_device", "request.json", "result.json"]
    log = folder / "log.txt"
    status = build.processes.run(command, cwd=folder, environment=os.environ, log=log)
    if status != 0 or not (folder / "result.json").is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"]
        return {"failed": f"the run on the device failed with {status}: {lines[-1][:300]} (log: {log})"}
    return dict(read_json(folder / "result.json"))
