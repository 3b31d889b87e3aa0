"""The command line: parse, call the function of the same name, print. Data to stdout, everything else to stderr.

Exit codes: 0 done, 1 a failure named in one sentence, 2 wrong usage, 130 interrupted (finished stages are kept).
"""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import click

import neuron_port
from neuron_port.errors import NeuronPortError

INTERRUPTED = 130

# Read by the heavy packages when they are imported. They announce themselves on stderr unless told not to; and threads
# that wait for work by spinning make torch five times slower on a machine that has other work too (docs/log.md).
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code: every failure that a user can fix is one sentence."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")  # of the libraries that we call; our own findings are part of the report
    try:
        commands(args=arguments, prog_name="neuron-port", standalone_mode=False)
        code = 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()  # the help, on stderr
        code = error.exit_code
    except NeuronPortError as error:
        _say(error.message, error.hint)
        code = error.exit_code
    except click.UsageError as error:
        _say(error.format_message(), f"See `{error.ctx.command_path} --help`." if error.ctx else None)
        code = 2
    except click.ClickException as error:
        _say(error.format_message(), None)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _say("Interrupted. Finished stages are kept", "Run the same command again to go on.")
        code = INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _say(
            f"The disk is full: `{error.filename or 'unknown file'}`",
            "Free some space and run the command again.",
        )
        code = 1
    sys.exit(code)


def _say(message: str, hint: str | None) -> None:
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"  hint: {hint}", err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(neuron_port.__version__, prog_name="neuron-port")
def commands() -> None:
    """Convert Hugging Face models to AWS Trainium and Inferentia, with proof that the result is right."""


def _model_options(function: Any) -> Any:
    """The options that decide what is converted, shared by `convert` and `plan`."""
    options = [
        click.argument("model"),
        click.option("--target", help="Chip: inf2, trn1 or trn2.  [default: the preset's, or trn2]"),
        click.option("--dtype", help="What ships: bfloat16 or float32.  [default: the preset's, or bfloat16]"),
        click.option("--buckets", help="Prompt lengths, comma-separated; one graph each.  [default: 128]"),
        click.option("--cache-length", type=int, help="Key/value slots.  [default: twice the largest bucket]"),
        click.option("--batch", type=int, help="Sequences per graph.  [default: 1]"),
        click.option("--revision", help="Branch, tag or commit of a hub model."),
        click.option("--random-weights", is_flag=True, help="Convert from the configuration alone."),
        click.option("--compiler", "compiler_layers", multiple=True, metavar="RECIPE",
                     help="Leave layers of this recipe to the compiler. Repeatable."),
        click.option("--recipes", "recipe_folders", multiple=True, metavar="DIR",
                     type=click.Path(exists=True, file_okay=False, path_type=Path),
                     help="A folder with more recipes. Repeatable."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option("--quiet", is_flag=True, help="No progress."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def _parse_buckets(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(
            f"`{text}` is not a list of numbers such as 64,256", param_hint="--buckets"
        ) from None


@commands.command()
@_model_options
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="The bundle.  [default: bundles/<model>-...]"
)
@click.option("--weights", type=click.Choice(["copy", "link", "reference"]), default="copy", show_default=True,
              help="How the bundle holds the checkpoint's weights.")  # fmt: skip
@click.option(
    "--prompt", "prompts", multiple=True, help="A text for the proof. Repeatable.  [default: the preset's]"
)
@click.option(
    "--new-tokens", type=int, default=32, show_default=True, help="Tokens generated for each prompt."
)
@click.option("--proof", type=click.Choice(["auto", "full", "kernels"]), default="auto", show_default=True,
              help="Run the whole model (full), or its kernels and graphs alone; auto decides by size.")  # fmt: skip
def convert(as_json: bool, quiet: bool, buckets: str | None, **options: Any) -> None:
    """Convert MODEL (a preset, a hub id, a folder or a .gguf file) into a verified Neuron bundle."""
    from neuron_port.pipeline.convert import convert as run
    from neuron_port.pipeline.options import complete_options

    completed = complete_options(buckets=_parse_buckets(buckets), **options)
    with _live_view(as_json, quiet) as view:
        conversion = run(completed, view)
    _show(conversion, as_json)


@commands.command()
@_model_options
def plan(as_json: bool, quiet: bool, buckets: str | None, **options: Any) -> None:
    """Show what MODEL is made of and which kernel serves each layer, without converting it."""
    from rich.console import Console

    from neuron_port.pipeline.convert import plan_only
    from neuron_port.pipeline.options import complete_options
    from neuron_port.report import json_summary, plan_table

    completed = complete_options(buckets=_parse_buckets(buckets), new_tokens=2, **options)
    with _live_view(as_json, quiet) as view:
        conversion = plan_only(completed, view)
    if as_json:
        click.echo(json.dumps(json_summary(**vars(conversion)), indent=2))
    else:
        Console().print(plan_table(conversion.graphs, conversion.plan))


def _live_view(as_json: bool, quiet: bool) -> Any:
    from rich.console import Console

    from neuron_port.report import LiveView

    return LiveView(Console(stderr=True, quiet=quiet), enabled=not (as_json or quiet))


def _show(conversion: Any, as_json: bool) -> None:
    from rich.console import Console

    from neuron_port.report import json_summary, summary

    if as_json:
        click.echo(json.dumps(json_summary(**vars(conversion)), indent=2))
    else:
        Console().print(summary(**vars(conversion)))


if __name__ == "__main__":
    main()
