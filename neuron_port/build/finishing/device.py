"""Step 5a: where a device is, the bundle's NEFFs are run on it by another interpreter (`run_on_device`)."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .build import Build
from .files import FINISH, read_json, write_json
from .processes import TIMED_OUT, Processes, fresh
from .tables import FAMILIES

LIMIT_SECONDS = 1800.0  # for each graph, unless --timeout-minutes says otherwise: loading and a few runs


def instance_type() -> str:
    """The EC2 instance type that the firmware states, or "unknown"."""
    with contextlib.suppress(OSError):
        name = Path("/sys/devices/virtual/dmi/id/product_name").read_text(encoding="utf-8").strip()
        if re.fullmatch(r"[a-z][a-z0-9-]*\.[a-z0-9-]+", name):
            return name
    return "unknown"


def device_obstacle(device_nodes: str, target: str, instance: str) -> str:
    """Why nothing compiled for `target` can be run here, or ""."""
    pattern = Path(device_nodes)
    if not any(pattern.parent.glob(pattern.name)):
        return f"there is no Neuron device here ({device_nodes})"
    family = instance.partition(".")[0]
    if family != "unknown" and family not in FAMILIES[target]:
        return f"this is a {instance}, which cannot run what was compiled for {target}"
    return ""


def nrtpy_obstacle(python: str) -> str:
    """Why the interpreter cannot run NEFFs, or ""."""
    code = "import nrtpy, numpy; nrtpy.NrtpyModel, nrtpy.NrtpyTensor"
    try:
        answer = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, timeout=300, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{python} does not run: {error}"
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        return f"nrtpy cannot be imported by {python} ({last}); --nrtpy-python names another interpreter"
    return ""


def check_neffs(
    build: Build, graphs: Sequence[str], nrtpy_python: str, weights: Path | None
) -> dict[str, Any]:
    """Run the NEFFs by `finish.py _device` in the nrtpy environment; the report of `run_check`."""
    request = {
        "bundle": str(build.bundle.folder), "graphs": list(graphs),
        "weights": None if weights is None else str(weights.resolve()),
        "target": build.target,
    }  # fmt: skip
    command = [nrtpy_python, str(FINISH), "_device"]
    return run_check(command, request, work=build.work, processes=build.processes, environment=os.environ)


def run_check(
    command: Sequence[str], request: Mapping[str, Any], *, work: Path, processes: Processes,
    environment: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """Run the part of finishing that asks a device, in another interpreter; return its report.

    The report has "graphs", or "problem" (nothing could be tried), or "failed" (the device or its runtime gave
    up, or did not come to an end).
    """
    folder = fresh(work / "device")
    write_json(folder / "request.json", request)
    log = folder / "log.txt"
    limit = (processes.limit_seconds or LIMIT_SECONDS) * len(request["graphs"])
    running = Processes(limit, processes.progress_seconds)
    argv = [*command, "request.json", "result.json"]
    try:
        status = running.run(argv, cwd=folder, environment=environment, log=log, name="device")
    except BaseException:
        running.stop()
        raise
    if status == TIMED_OUT:
        return {"failed": f"the run on the device did not end within {limit / 60:.0f} minutes (log: {log})"}
    if status != 0 or not (folder / "result.json").is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"]
        return {"failed": f"the run on the device failed with {status}: {lines[-1][:300]} (log: {log})"}
    return dict(read_json(folder / "result.json"))
