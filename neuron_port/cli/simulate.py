"""`neuron-port simulate`: run any kernel file on given inputs, and compare with a reference.

Figures go to stdout, progress to stderr. Ends with 1 when the kernel is refused or disagrees with the reference.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuron_port.cli.kernel_options import kernel_options

if TYPE_CHECKING:
    from neuron_port.cli.kernel_call import KernelCall
    from neuron_port.cli.kernel_verdict import OutputVerdict
    from neuron_port.simulator import KernelRun

SHOWN_TILES = 4


@click.command()
@kernel_options
@click.option("--reference", "-r", metavar="FILE:FUNCTION",
              help="A function of NumPy arrays or torch tensors that the outputs must agree with.")  # fmt: skip
@click.option("--tolerance", metavar="R[,A]",
              help="Each element within A + R x |reference|.  [default: 4 x the noise of the dtype]")  # fmt: skip
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.npz",
              help="Write the outputs, and what the kernel left in --mutable inputs.")  # fmt: skip
def simulate(
    reference: str | None,
    tolerance: str | None,
    output: Path | None,
    as_json: bool,
    with_traceback: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Run the kernel FUNCTION of FILE on a simulated NeuronCore, strictly, and say what it did.

    \b
    neuron-port simulate kernel.py:rms_norm -i x=128x512:bfloat16 -i gamma=512:bfloat16 -s eps=1e-6 \\
        --reference reference.py:rms_norm
    """
    from neuron_port.cli.kernel_call import changed_inputs, execute, prepare

    call = prepare(**options)
    comparing = None
    if reference is not None or tolerance is not None:
        comparing = _reference(reference, tolerance)
    run, seconds = execute(call, quiet=quiet, with_traceback=with_traceback)
    verdicts: list[OutputVerdict] = []
    left_out: list[str] = []
    if comparing is not None:
        from neuron_port.cli.kernel_verdict import judge

        checked, limits = comparing
        given = {one.name: one.array for one in call.inputs} | call.settings
        verdicts = judge(run.outputs, checked, given, limits)
        left_out = checked.left_out(given)
    if output is not None:
        _write(output, run, {name: array.numpy() for name, array in changed_inputs(call).items()})
    facts = _facts(call, run, seconds)
    if as_json:
        facts["comparison"] = [asdict(verdict) for verdict in verdicts]
        click.echo(json.dumps(facts, indent=2))
    else:
        _print(call, run, facts)
        _print_verdicts(verdicts, left_out, reference)
        if output is not None:
            click.echo(f"{'written':<14}{output}")
    if not all(verdict.passed for verdict in verdicts):
        raise click.exceptions.Exit(1)


def _reference(reference: str | None, tolerance: str | None) -> tuple[Any, tuple[float, float] | None]:
    """The reference and the tolerance, read before the kernel runs: a mistake in them must not cost a run."""
    from neuron_port.cli.kernel_reference import Reference
    from neuron_port.cli.kernel_verdict import parse_tolerance

    limits = parse_tolerance(tolerance)
    if reference is None:
        raise click.UsageError("--tolerance compares with a reference, and there is no --reference")
    return Reference(reference), limits


def _facts(call: KernelCall, run: KernelRun, seconds: float) -> dict[str, Any]:
    """What the run did, as plain data."""
    from neuron_port.profiling.memory import memory_peaks

    sbuf, psum = memory_peaks(run.traces, run.target)
    return {
        "kernel": call.name,
        "file": str(call.path),
        "target": run.target.name,
        "lnc": call.lnc,
        "inputs": [
            {
                "name": one.name,
                "shape": list(one.array.shape),
                "dtype": str(one.array.dtype),
                "origin": one.origin,
            }
            for one in call.inputs
        ],
        "settings": {name: str(value) for name, value in call.settings.items()},
        "outputs": [{"shape": list(array.shape), "dtype": str(array.dtype)} for array in run.outputs],
        "instructions": sum(len(trace) for trace in run.traces),
        "instructions_by_engine": dict(_counts(run).most_common()),
        "matmul_macs": run.matmul_macs,
        "hbm_read_bytes": run.hbm_read_bytes,
        "hbm_write_bytes": run.hbm_write_bytes,
        "sbuf_peak": asdict(sbuf),
        "psum_peak": asdict(psum),
        "warnings": list(run.warnings),
        "seconds": round(seconds, 3),
    }


def _print(call: KernelCall, run: KernelRun, facts: dict[str, Any]) -> None:
    cores = f", {call.lnc} cores" if call.lnc > 1 else ""
    _row("kernel", f"{call.name} ({call.path}) on {run.target.name}{cores}")
    for number, one in enumerate(call.inputs):
        shape = f"{tuple(one.array.shape)} {one.array.dtype}"
        _row("inputs" if number == 0 else "", f"{one.name:<12} {shape:<28} {one.origin}")
    if call.settings:
        _row("settings", ", ".join(f"{name}={value!r}" for name, value in call.settings.items()))
    for number, array in enumerate(run.outputs):
        _row("outputs" if number == 0 else "", f"{number:<12} {tuple(array.shape)} {array.dtype}")
    engines = ", ".join(f"{name} {count:,}" for name, count in _counts(run).most_common())
    _row("instructions", f"{facts['instructions']:,}: {engines}")
    _row("HBM", f"{run.hbm_read_bytes:,} bytes read, {run.hbm_write_bytes:,} written")
    for key in ("sbuf_peak", "psum_peak"):
        _print_peak(facts[key])
    for number, warning in enumerate(run.warnings):
        _row("warnings" if number == 0 else "", warning)
    if not run.warnings:
        _row("warnings", "none")
    click.echo(f"{call.name}: simulated in {facts['seconds']:.2f} s", err=True)


def _counts(run: KernelRun) -> Counter[str]:
    """Instructions by engine, of all cores."""
    return sum((trace.counts_by_engine() for trace in run.traces), Counter())


def _print_peak(peak: dict[str, Any]) -> None:
    used = f"{peak['used']:,} of {peak['capacity']:,} {peak['unit']}"
    if not peak["used"]:
        _row(peak["memory"], used)
        return
    _row(peak["memory"], f"{used}, fullest at {peak['location']}")
    tiles = peak["tiles"]
    named = ", ".join(f"{tile['name']} {tile['used']:,}" for tile in tiles[:SHOWN_TILES])
    more = f" and {len(tiles) - SHOWN_TILES} more" if len(tiles) > SHOWN_TILES else ""
    _row("", f"live there: {named}{more}")


def _print_verdicts(verdicts: Sequence[OutputVerdict], left_out: list[str], reference: str | None) -> None:
    for number, verdict in enumerate(verdicts):
        figures = (
            f"output {verdict.index}: max abs {verdict.max_abs:.3g}, max relative {verdict.max_relative:.3g}, "
            f"cosine {verdict.cosine:.9f}, relative L2 {verdict.relative_l2:.3g}"
        )
        _row("reference" if number == 0 else "", f"{reference}" if number == 0 else "")
        _row("", figures)
        _row("", f"{'passed' if verdict.passed else 'FAILED'}: {verdict.detail or verdict.explanation}")
        if verdict.detail:
            _row("", f"limit: {verdict.explanation}")
    if left_out:
        _row("", f"the reference takes no {', '.join(left_out)}")


def _row(label: str, text: str) -> None:
    if label or text:
        click.echo(f"{label:<14}{text}".rstrip())


def _write(path: Path, run: KernelRun, changed: dict[str, Any]) -> None:
    """The outputs as `output_0`, ..., and changed inputs by their names, in one file that appears when it is whole."""
    import numpy as np

    from neuron_port.profiling.files import written_whole

    arrays = {f"output_{number}": array for number, array in enumerate(run.outputs)} | changed
    with written_whole(path) as aside, aside.open("wb") as file:
        np.savez(file, **arrays)
