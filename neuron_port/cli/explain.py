"""`neuron-port explain`: what a language model tried for a layer, and why each candidate was refused or admitted."""

from __future__ import annotations

import json
from pathlib import Path

import click

from neuron_port.cli.opening import home_folder, require_folder


@click.command()
@click.argument("name", metavar="LAYER|TASK|RUN", required=False)
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Also write the tree as a page, with sources, changes and evidence.")  # fmt: skip
@click.option("--candidate", metavar="ID", help="Print the source of one candidate, such as 2.1.")
@click.option("--json", "as_json", is_flag=True, help="Print the tree as JSON.")
def explain(name: str | None, page: Path | None, candidate: str | None, as_json: bool) -> None:
    """Show the latest run about a layer, a task or a run's key: plans, candidates, verdicts, cost.

    Without a name, list all runs.
    """
    from neuron_port.drafting.keeping.journal import find_runs, list_runs
    from neuron_port.drafting.page import write_story
    from neuron_port.drafting.tree import headline, read_story, story_facts, story_text
    from neuron_port.errors import UsageError

    if page is not None:
        require_folder(page)
    home = home_folder()
    if name is None:
        runs = list_runs(home)
        for run in runs:
            click.echo(f"{run.key}  {headline(read_story(run))}")
        if not runs:
            click.echo(f"Nothing was drafted yet below {home}; `neuron-port draft` starts a run.", err=True)
        return
    found = find_runs(home, name)
    story = read_story(found[0])
    if candidate is not None:
        judged = story.candidates.get(candidate)
        if judged is None or judged.candidate.source is None:
            known = ", ".join(
                key for key, one in story.candidates.items() if one.candidate.source is not None
            )
            raise UsageError(f"No candidate with code: `{candidate}`", hint=f"There are {known or 'none'}.")
        click.echo(judged.candidate.source, nl=False)
        return
    if as_json:
        click.echo(json.dumps(story_facts(story), indent=2))
    else:
        click.echo(story_text(story), nl=False)
        if len(found) > 1:
            others = ", ".join(run.key for run in found[1:6])
            click.echo(f"{len(found) - 1} earlier runs: {others}", err=True)
    if page is not None:
        write_story(story, page)
        click.echo(f"written: {page}", err=True)
