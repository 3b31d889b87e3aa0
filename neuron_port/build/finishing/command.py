"""The command line of finishing: the five steps in order, and the exit codes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import manifest, options, status
from .build import Build
from .device import check_neffs, device_obstacle, instance_type, nrtpy_obstacle
from .environment import (
    Bundle,
    available_memory_bytes,
    check_integrity,
    check_machine,
    find_compiler,
    open_bundle,
    version_pair,
)
from .files import (
    COMPILATION,
    ENVIRONMENT,
    INTERRUPTED,
    OK,
    PARITY,
    USAGE,
    Stop,
    read_json,
    say,
    write_json,
)
from .jobs import chosen
from .kernels import NkiProbe, choose_kernels, compile_kernel_with_nki, probe_nki
from .processes import Processes, end_left_behind
from .run_on_device import device_main
from .scheduling import finish_all
from .tables import COMPILER_RELEASES
from .tracing import Tracing, probe_torch

Graphs = list[dict[str, Any]]


def select_graphs(found: Mapping[str, Any], wanted: str | None) -> Graphs:
    graphs = list(found["graphs"])
    if wanted is None:
        return graphs
    names = [name for name in wanted.split(",") if name]
    known = {graph["id"]: graph for graph in graphs}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise Stop(
            USAGE, f"Unknown graph: `{', '.join(unknown) or wanted}`.", f"The bundle has: {', '.join(known)}."
        )
    return [known[name] for name in dict.fromkeys(names)]


def check_options(asked: argparse.Namespace) -> None:
    """Stop for values that no run can have."""
    if asked.target is None and not asked.status:
        raise Stop(USAGE, "--target is missing.", "Name the chip: --target inf2, trn1 or trn2.")
    if asked.jobs is not None and asked.jobs < 1:
        raise Stop(USAGE, f"--jobs must be at least 1: `{asked.jobs}`.")
    if asked.timeout_minutes is not None and not asked.timeout_minutes > 0:
        raise Stop(USAGE, f"--timeout-minutes must be more than 0: `{asked.timeout_minutes:g}`.")
    if asked.engine == "trace" and asked.kernels == "on":
        raise Stop(
            USAGE, "--engine trace uses no NKI kernels: --kernels on cannot be had.", "Leave --kernels out."
        )


def prepare(asked: argparse.Namespace) -> tuple[Build | Tracing, Graphs]:
    """Steps 1 and 2: everything that can be refused before anything is written."""
    check_options(asked)
    bundle = open_bundle(asked.bundle.resolve())
    graphs = select_graphs(bundle.manifest, asked.graphs)
    check_integrity(bundle)
    work = (asked.work or bundle.folder / "build" / "work").resolve()
    existing = next(folder for folder in (work, *work.parents) if folder.is_dir())
    jobs = check_machine(
        graph_count=len(graphs), free_disk_bytes=shutil.disk_usage(existing).free,
        memory_bytes=available_memory_bytes(), cpu_count=os.cpu_count() or 1, jobs=asked.jobs,
    )  # fmt: skip
    limit = None if asked.timeout_minutes is None else asked.timeout_minutes * 60
    common = {
        "bundle": bundle, "target": asked.target, "jobs": jobs, "work": work,
        "cache": asked.cache.resolve() if asked.cache else None,
        "processes": Processes(limit, asked.progress_seconds),
    }  # fmt: skip
    if asked.engine == "trace":
        return _prepare_tracing(asked, common), graphs
    return _prepare_build(asked, graphs, common), graphs


def _prepare_build(asked: argparse.Namespace, graphs: Graphs, common: Mapping[str, Any]) -> Build:
    compiler = find_compiler()
    probes: list[NkiProbe] = []

    def probe() -> NkiProbe:
        probes.append(probe_nki(asked.nki_python))
        return probes[-1]

    if any(graph["kernels"] for graph in graphs):
        kernels, reason = choose_kernels(asked.kernels, asked.target, probe)
    else:
        kernels, reason = False, "the bundle uses no kernels"
    say(f"kernels: {'NKI' if kernels else 'compiler-lowered twin'} ({reason})")
    version = probes[-1].version if kernels else ""
    expected = COMPILER_RELEASES.get(version_pair(compiler.version), ("", ""))[1]
    if kernels and expected and not version.startswith(expected + "."):
        say(f"note: neuronx-cc {compiler.version} goes with nki {expected}, found {version}")
    return Build(
        **common, compiler=compiler, nki_python=asked.nki_python, insists=asked.kernels == "on",
        kernels=kernels, kernels_reason=reason, nki_version=version, retry_kernels=asked.retry_kernels,
    )  # fmt: skip


def _prepare_tracing(asked: argparse.Namespace, common: Mapping[str, Any]) -> Tracing:
    bundle: Bundle = common["bundle"]
    ranks = bundle.manifest["target"]["tp"]
    if ranks > 1:
        raise Stop(
            USAGE,
            f"--engine trace traces one core; the bundle is for {ranks} tensor-parallel ranks.",
            "Use --engine hlo, or convert without --tensor-parallel.",
        )
    versions = probe_torch(asked.torch_python)
    on_device = not device_obstacle(asked.device_nodes, asked.target, instance_type())
    return Tracing(
        **common,
        versions=versions,
        torch_python=asked.torch_python,
        weights=asked.weights,
        on_device=on_device,
    )


@contextlib.contextmanager
def only_one(bundle: Path) -> Iterator[None]:
    """Hold the bundle's lock, or stop: two runs would write the same files."""
    with (bundle / "build" / ".finish.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Stop(
                ENVIRONMENT, "Another finish.py is at work in this bundle.", "Wait for it to end."
            ) from error
        yield


def finish(asked: argparse.Namespace) -> int:
    """All five steps; returns the exit code."""
    if asked.status:
        check_options(asked)
        return status.show(open_bundle(asked.bundle.resolve()))
    engine, graphs = prepare(asked)
    if asked.dry_run:
        return dry_run(engine, graphs)
    with only_one(engine.bundle.folder):
        if ended := end_left_behind(engine.work):
            say(f"note: {ended} compilation(s) that an earlier run had left behind were ended")
        try:
            failures = finish_all(engine, graphs)
        except BaseException:
            update(engine, None, "")
            raise
        done = update(engine, None, "")
        if failures:
            say(
                f"{len(failures)} of {len(graphs)} graphs did not compile; the others are kept. "
                f"State: {done['state']}."
            )
            return COMPILATION
        if done["state"] == "portable":
            say("state: portable (other graphs of the bundle are not compiled yet)")
            return OK
        say(f"all graphs compiled for {engine.target}")
        return device_step(engine, asked, done["state"])


def dry_run(engine: Build | Tracing, graphs: Graphs) -> int:
    for graph in graphs:
        if isinstance(engine, Tracing):
            job = engine.job(graph)
            print(f"{job.graph}: {job.hlo_name}: torch_neuronx.trace(compiler_args={list(job.argv)})")
        else:
            job = engine.job(graph, engine.wanted(graph))
            native = f" (NKI: {', '.join(chosen(job.choices))})" if chosen(job.choices) else ""
            print(f"{job.graph}: {job.hlo_name}{native}: {' '.join(job.argv)}")
    say("dry run: nothing was written")
    return OK


def update(engine: Build | Tracing, device: Mapping[str, Any] | None, instance: str) -> dict[str, Any]:
    if isinstance(engine, Tracing):
        return manifest.update_traced(engine, device, instance)
    return manifest.update_manifest(engine, device, instance)


def device_step(engine: Build | Tracing, asked: argparse.Namespace, state: str) -> int:
    """Step 5: run what was compiled where there is a device, and record what it says."""
    instance = instance_type()
    obstacle = device_obstacle(asked.device_nodes, engine.target, instance)
    report: dict[str, Any] = {}
    names = [graph["id"] for graph in engine.bundle.manifest["graphs"]]
    if not obstacle and isinstance(engine, Tracing):
        report = engine.check(names)
    elif not obstacle:
        assert isinstance(engine, Build)
        obstacle = nrtpy_obstacle(asked.nrtpy_python)
        report = {} if obstacle else check_neffs(engine, names, asked.nrtpy_python, asked.weights)
    obstacle = obstacle or report.get("problem", "")
    if obstacle:
        confirmed = (
            "a device confirmed these files earlier"
            if state == "device-verified"
            else "no device has confirmed them"
        )
        say(f"device check skipped: {obstacle}.\nstate: {state} ({confirmed})")
        return OK
    if failure := report.get("failed"):
        say(f"device: {failure}.\nstate: {state} (the device did not confirm it)")
        return PARITY
    done = update(engine, report, instance)
    for graph, result in report["graphs"].items():
        say(f"{graph}: {'agrees with the reference' if result['pass'] else f'DISAGREES: {_worst(result)}'}")
    say(f"state: {done['state']}")
    return OK if done["state"] == "device-verified" else PARITY


def _worst(result: Mapping[str, Any]) -> str:
    """The outputs of a graph that are beyond their limits, or what kept it from running."""
    bad = {name: output for name, output in result.get("outputs", {}).items() if not output["pass"]}
    said = [f"{name}: {output['metrics'] or output['problem']}" for name, output in bad.items()]
    return "; ".join(said) or str(result.get("problem", "no output was compared"))


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _in_another_environment(name: str, request: Path, result: Path) -> int:
    """The parts of finishing that another interpreter runs for us."""
    if name == "_kernel":
        write_json(result, {"backend_config": compile_kernel_with_nki(read_json(request))})
        return OK
    if name == "_device":
        return device_main(request, result)
    from . import run_traced  # needs torch, which only the environment of engine trace has

    return {"_trace": run_traced.trace_main, "_check_traced": run_traced.check_main}[name](request, result)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] and arguments[0] in ("_kernel", "_device", "_trace", "_check_traced"):
        return _in_another_environment(arguments[0], Path(arguments[1]), Path(arguments[2]))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return finish(options.parser().parse_args(arguments))
    except Stop as stop:
        say(f"error: {stop.sentence}" + (f"\n  cure: {stop.cure}" if stop.cure else ""))
        return stop.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        say(
            f"error: {error.strerror}: {error.filename or 'the bundle'}\n"
            "  cure: make room, or give write access, and run again"
        )
        return ENVIRONMENT
    except KeyboardInterrupt:
        say("interrupted; what was finished is kept. Run the same command again to continue.")
        return INTERRUPTED
