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

from .build import Build, compile_all
from .device import check_on_device, device_obstacle, instance_type
from .environment import (
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
    FINISH,
    INTERRUPTED,
    OK,
    PARITY,
    USAGE,
    Stop,
    read_json,
    say,
    write_json,
)
from .kernels import NkiProbe, choose_kernels, compile_kernel_with_nki, probe_nki
from .manifest import update_manifest
from .run_on_device import device_main
from .tables import COMPILER_RELEASES, TARGETS


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="finish.py",
        description="Compile a neuron bundle for a chip, and check it on a device when there is one.",
        epilog="Exit codes: 0 done, 2 usage, 3 environment, 4 compilation, 5 parity on the device, "
        "130 interrupted. Run the same command again to continue.",
    )  # fmt: skip
    made.add_argument("--target", required=True, choices=TARGETS)
    made.add_argument("--engine", default="hlo", choices=("hlo",), help="HLO -> neuronx-cc -> NEFF -> nrtpy")
    made.add_argument(
        "--kernels", default="auto", choices=("auto", "on", "off"), help="NKI kernels (auto: trn2 only)"
    )
    made.add_argument("--jobs", type=int, help="compilations at once (default: by processors and memory)")
    made.add_argument("--graphs", help="only these, separated by commas")
    made.add_argument(
        "--dry-run", action="store_true", help="check everything, print the commands, write nothing"
    )
    made.add_argument("--cache", type=Path, help="folder of NEFFs shared by bundles (default: none)")
    made.add_argument("--work", type=Path, help="scratch folder (default: build/work in the bundle)")
    made.add_argument(
        "--weights", type=Path, help="the checkpoint's folder, when the bundle only refers to weights"
    )
    made.add_argument(
        "--nki-python", default=sys.executable, help="interpreter of the environment that has nki"
    )
    made.add_argument(
        "--nrtpy-python", default=sys.executable, help="interpreter of the environment that has nrtpy"
    )
    made.add_argument(
        "--device-nodes", default="/dev/neuron*", help="where devices appear (default: %(default)s)"
    )
    made.add_argument("--bundle", type=Path, default=FINISH.parent.parent, help=argparse.SUPPRESS)
    return made


def select_graphs(manifest: Mapping[str, Any], wanted: str | None) -> list[dict[str, Any]]:
    graphs = list(manifest["graphs"])
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


def prepare(options: argparse.Namespace) -> tuple[Build, list[dict[str, Any]]]:
    """Steps 1 and 2: everything that can be refused before anything is written."""
    bundle = open_bundle(options.bundle.resolve())
    graphs = select_graphs(bundle.manifest, options.graphs)
    if options.jobs is not None and options.jobs < 1:
        raise Stop(USAGE, f"--jobs must be at least 1: `{options.jobs}`.")
    check_integrity(bundle)
    compiler = find_compiler()
    work = (options.work or bundle.folder / "build" / "work").resolve()
    existing = next(folder for folder in (work, *work.parents) if folder.is_dir())
    jobs = check_machine(
        graph_count=len(graphs), free_disk_bytes=shutil.disk_usage(existing).free,
        memory_bytes=available_memory_bytes(), cpu_count=os.cpu_count() or 1, jobs=options.jobs,
    )  # fmt: skip
    probes: list[NkiProbe] = []

    def probe() -> NkiProbe:
        probes.append(probe_nki(options.nki_python))
        return probes[-1]

    if any(graph["kernels"] for graph in graphs):
        kernels, reason = choose_kernels(options.kernels, options.target, probe)
    else:
        kernels, reason = False, "the bundle uses no kernels"
    say(f"kernels: {'NKI' if kernels else 'compiler-lowered twin'} ({reason})")
    version = probes[-1].version if kernels else ""
    expected = COMPILER_RELEASES.get(version_pair(compiler.version), ("", ""))[1]
    if kernels and expected and not version.startswith(expected + "."):
        say(f"note: neuronx-cc {compiler.version} goes with nki {expected}, found {version}")
    build = Build(
        bundle=bundle, target=options.target, compiler=compiler, jobs=jobs, work=work,
        cache=options.cache.resolve() if options.cache else None, nki_python=options.nki_python,
        requested_kernels=options.kernels, kernels=kernels, kernels_reason=reason, nki_version=version,
    )  # fmt: skip
    return build, graphs


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


def finish(options: argparse.Namespace) -> int:
    """All five steps; returns the exit code."""
    build, graphs = prepare(options)
    if options.dry_run:
        for graph in graphs:
            job = build.first_job(graph)
            print(f"{job.graph}: {job.hlo_name}: {' '.join(job.argv)}")
        say("dry run: nothing was written")
        return OK
    with only_one(build.bundle.folder):
        try:
            failures = compile_all(build, graphs)
        except BaseException:
            update_manifest(build, None, "")
            raise
        done = update_manifest(build, None, "")
        if failures:
            say(
                f"{len(failures)} of {len(graphs)} graphs did not compile; the others are kept. "
                f"State: {done['state']}."
            )
            return COMPILATION
        if done["state"] == "portable":
            say("state: portable (other graphs of the bundle are not compiled yet)")
            return OK
        say(f"all graphs compiled for {build.target}")
        return device_step(build, options, done["state"])


def device_step(build: Build, options: argparse.Namespace, state: str) -> int:
    """Step 5: run the NEFFs where there is a device, and record what it says."""
    instance = instance_type()
    obstacle = device_obstacle(options.device_nodes, build.target, instance, options.nrtpy_python)
    report: dict[str, Any] = {}
    if not obstacle:
        names = [graph["id"] for graph in build.bundle.manifest["graphs"]]
        report = check_on_device(build, names, options.nrtpy_python, options.weights)
        obstacle = report.get("problem", "")
    if obstacle:
        confirmed = (
            "a device confirmed these NEFFs earlier"
            if state == "device-verified"
            else "no device has confirmed them"
        )
        say(f"device check skipped: {obstacle}.\nstate: {state} ({confirmed})")
        return OK
    if failure := report.get("failed"):
        say(f"device: {failure}.\nstate: {state} (the device did not confirm it)")
        return PARITY
    done = update_manifest(build, report, instance)
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


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["_kernel"]:
        request = read_json(Path(arguments[1]))
        write_json(Path(arguments[2]), {"backend_config": compile_kernel_with_nki(request)})
        return OK
    if arguments[:1] == ["_device"]:
        return device_main(Path(arguments[1]), Path(arguments[2]))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return finish(parser().parse_args(arguments))
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
