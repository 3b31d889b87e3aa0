"""`neuron-port doctor`: what is installed here, which versions go together, what works, and what cures each gap."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from neuron_port.preflight.doctor import Ability, Diagnosis


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the diagnosis as JSON.")
@click.option(
    "--strict", is_flag=True, help="Exit with 1 when a package is broken or versions do not go together."
)
def doctor(as_json: bool, strict: bool) -> int:
    """Say what is installed on this machine, which versions go together, and what works here.

    Imports nothing, installs nothing and does not call AWS. Exits with 0 whatever it finds, unless --strict.
    """
    from rich.console import Console

    from neuron_port.preflight.doctor import diagnose
    from neuron_port.preflight.probes import look
    from neuron_port.types import to_json

    found = diagnose(look())
    if as_json:
        click.echo(json.dumps(to_json(found), indent=2))
    else:
        Console().print(_text(found))
    return 1 if strict and found.problems else 0


def _text(found: Diagnosis) -> Any:
    """The diagnosis: what works first, then what is wrong, then what is here."""
    from rich.console import Group
    from rich.text import Text

    from neuron_port.preflight.doctor import REPOSITORY, REPOSITORY_NOTE

    parts: list[Any] = [Text("what works here", style="bold"), *map(_ability, found.abilities)]
    parts.append(Text("\nproblems", style="bold"))
    parts += [_with_cure(f"  {one.what}", one.cure) for one in found.problems] or [Text("  none")]
    cures = [*(one.cure for one in found.abilities), *(one.cure for one in found.problems)]
    if any(REPOSITORY in cure for cure in cures):
        parts.append(Text(f"\n{REPOSITORY_NOTE}", style="dim"))
    parts += [Text("\nthis machine", style="bold"), _machine(found)]
    return Group(*parts)


def _ability(one: Ability) -> Any:
    from rich.text import Text

    styles = {"yes": "green", "no": "red", "unknown": "yellow"}
    line = Text.assemble(f"  {one.name:36s}", (f"{one.works:8s}", styles[one.works]), one.reason)
    return line if not one.cure else _with_cure(line, one.cure)


def _with_cure(line: Any, cure: str) -> Any:
    from rich.text import Text

    return Text.assemble(line, ("\n      cure: ", "dim"), cure, no_wrap=True, overflow="ignore")


def _machine(found: Diagnosis) -> Any:
    from rich.padding import Padding
    from rich.table import Table

    machine = found.machine
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("system", f"Python {machine.python}, {machine.system}, {machine.cpus} CPUs, "
                  f"{machine.memory_bytes / 2**30:.0f} GiB of memory")  # fmt: skip
    table.add_row("EC2 instance type", machine.instance_type or "not an EC2 instance, or DMI does not say")
    driver = f"driver {machine.driver}" if machine.driver else "no driver"
    table.add_row("Neuron devices", f"{len(machine.devices)}, {driver}")
    table.add_row("Neuron SDK", found.release or "none, or of several releases")
    for package in machine.packages.values():
        table.add_row(package.name, package.version or "not installed")
    for program in machine.programs.values():
        table.add_row(f"`{program.name}`", program.path or "not on PATH")
    table.add_row("AWS credentials", machine.credentials or "none written here")
    return Padding(table, (0, 0, 0, 2))
