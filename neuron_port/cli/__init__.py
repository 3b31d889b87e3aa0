"""The command line, a file per command: parse, call, print. Data to stdout, everything else to stderr.

Exit codes: 0 done, 1 a failure named in one sentence, 2 wrong usage, 130 interrupted (finished stages are kept).
"""

from __future__ import annotations

import errno
import os
import sys
import warnings

import click

import neuron_port
from neuron_port.cli import (
    bench,
    build,
    check,
    convert,
    deploy,
    doctor,
    draft,
    explain,
    export,
    lint,
    lower,
    memory,
    optimize,
    profile,
    recipes,
    serve,
    simulate,
    verify,
)
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
        returned = commands(args=arguments, prog_name="neuron-port", standalone_mode=False)
        code = returned if isinstance(returned, int) else 0  # what a command asked to exit with
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
    """Convert Hugging Face models to AWS Trainium and Inferentia, with proof that the result is right.

    \b
    Before:          check, doctor
    Models:          convert, plan, lower
    Kernels:         simulate, profile, lint, verify
    Language model:  draft, optimize, explain, memory, bench
    Recipes:         recipes
    Serving:         serve
    Finish:          build
    On AWS:          deploy, export
    """


COMMANDS = (
    check.check, doctor.doctor, convert.convert, convert.plan, lower.lower,
    simulate.simulate, profile.profile, lint.lint, verify.verify, draft.draft,
    optimize.optimize, explain.explain, memory.memory, bench.bench,
    recipes.recipes, build.build, deploy.deploy, export.export, serve.serve,
)  # fmt: skip
for command in COMMANDS:
    commands.add_command(command)
