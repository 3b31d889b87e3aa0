"""`neuron-port profile`: where a kernel's time would go on the device, what to change, and pictures of it.

Figures go to stdout, progress to stderr; the trace, the picture and the page go to the output directory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuron_port.cli.kernel_options import kernel_options

if TYPE_CHECKING:
    from neuron_port.profiling.profile import Profile


@click.command()
@kernel_options
@click.option("--output-directory", "-o", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Where trace.json, timeline.png and profile.html go.  [default: profiles/FUNCTION]")  # fmt: skip
@click.option("--lines", "shown_lines", type=click.IntRange(1), default=12, show_default=True,
              help="How many source lines are printed.")  # fmt: skip
def profile(
    output_directory: Path | None,
    shown_lines: int,
    as_json: bool,
    with_traceback: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Predict where the time of the kernel FUNCTION of FILE goes, and say what to change.

    Writes a trace for Perfetto (ui.perfetto.dev), a picture of the timeline, and a page that has both and the source.

    \b
    neuron-port profile kernel.py:rms_norm -i x=4096x4096:bfloat16 -i gamma=4096:bfloat16 -s eps=1e-6
    """
    from neuron_port.cli.kernel_call import execute, interruptible, prepare
    from neuron_port.profiling.profile import make_profile
    from neuron_port.profiling.summary import profile_facts, profile_text
    from neuron_port.simulator.timing import predict

    call = prepare(**options)
    run, seconds = execute(call, quiet=quiet, with_traceback=with_traceback)
    with interruptible(call.name):
        _say(
            quiet,
            f"{call.name}: {sum(map(len, run.traces)):,} instructions in {seconds:.2f} s; predicting ...",
        )
        made = make_profile(call.name, predict(run), run.traces, run.target, run.warnings)
        folder = output_directory or Path("profiles") / call.name
        written = _write(made, folder, quiet)
    if as_json:
        facts = profile_facts(made) | {"files": [str(path) for path in written]}
        click.echo(json.dumps(facts, indent=2))
    else:
        click.echo(profile_text(made, shown_lines))
        for path in written:
            click.echo(f"written       {path}")


def _write(made: Profile, folder: Path, quiet: bool) -> list[Path]:
    """The trace, the picture and the page, each whole or not at all."""
    from neuron_port.profiling.page import write_page
    from neuron_port.profiling.perfetto import write_perfetto
    from neuron_port.profiling.picture import write_picture

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, write in (
        ("trace.json", write_perfetto),
        ("timeline.png", write_picture),
        ("profile.html", write_page),
    ):
        _say(quiet, f"{made.kernel}: writing {name} ...")
        write(made, folder / name)
        written.append(folder / name)
    return written


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        click.echo(text, err=True)
