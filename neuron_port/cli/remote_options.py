"""What the commands that reach AWS share: options of a remote build, prices, and ending like Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import click

UNCONFIRMED = (
    "No AWS account has confirmed this yet: it was exercised against a stand-in for AWS (docs/deploy.md)."
)


def say(line: str) -> None:
    click.echo(line, err=True)


def parse_prices(_context: Any, _parameter: Any, values: tuple[str, ...]) -> dict[str, float]:
    """TYPE=USD pairs of --price; a type that the table does not have is refused, for its price would do nothing."""
    from neuron_port.instances import instance

    prices = {}
    for value in values:
        name, _, usd = value.partition("=")
        try:
            prices[instance(name).name] = float(usd)
        except ValueError:
            raise click.BadParameter(f"`{value}` is not TYPE=USD, such as inf2.xlarge=0.76") from None
    return prices


@contextlib.contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """Have SIGTERM end us as Ctrl-C does: what was started on AWS is ended first."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def price_option(function: Any) -> Any:
    """--price TYPE=USD, for an account whose prices are not the table's."""
    help_text = "US$ per hour, instead of the table's. Repeatable."
    option = click.option(
        "--price", "prices", multiple=True, metavar="TYPE=USD", callback=parse_prices, help=help_text
    )
    return option(function)


def remote_options(function: Any) -> Any:
    """The options that decide a remote build, shared with `neuron-port build --remote`."""
    options = [
        click.option("--no-verify", is_flag=True, help="Compile only: no device checks the result."),
        click.option("--compile-instance", metavar="TYPE", help="Compile here.  [default: the cheapest that can]"),
        click.option("--verify-instance", metavar="TYPE", help="Verify here.  [default: the cheapest that fits]"),
        click.option("--market", type=click.Choice(["on-demand", "spot"]), default="on-demand", show_default=True),
        click.option("--no-retry", is_flag=True, help="Do not replace a reclaimed spot instance by one on demand."),
        click.option("--max-usd", type=float, default=10.0, show_default=True, help="Ceiling of the whole job."),
        click.option("--timeout-minutes", type=int, default=120, show_default=True, help="Hard end of each instance."),
        click.option("--image", help="Machine image: an id or a public SSM parameter.  [default: the Neuron DLAMI]"),
        click.option("--pip-index", metavar="URL", help="The pip repository that the Neuron SDK's guide names."),
        click.option("--subnet", metavar="ID", help="Start instances here.  [default: the default VPC]"),
        price_option,
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def build_options(target: str, remote: str, finish_arguments: tuple[str, ...] = (), **options: Any) -> Any:
    """The record of a remote build from what `remote_options` parsed."""
    from neuron_port.deploy.job import IMAGE, Options
    from neuron_port.deploy.locations import parse_location

    return Options(
        target=target, remote=parse_location(remote), verify=not options.pop("no_verify"),
        retry_on_demand=not options.pop("no_retry"), image=options.pop("image") or IMAGE,
        finish_arguments=finish_arguments, **options,
    )  # fmt: skip
