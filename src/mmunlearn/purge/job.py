"""`mmunlearn purge`: say what is stored about people, delete it where that is possible, and list where it is not."""

from collections.abc import Sequence

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmunlearn.config import PurgeConfig, typed
from mmunlearn.locks import is_locked
from mmunlearn.purge.people import People
from mmunlearn.purge.plan import make_plan
from mmunlearn.purge.scan import Rest, scan
from mmunlearn.purge.steps import Plan
from mmunlearn.run import Run

REMAINS = 3
"""Exit code: something about the people is still there."""


def run_purge(config: DictConfig) -> None:
    """Find what is stored about people and, with `purge.yes`, delete it. Names are not printed, paths are.

    Ends the program with code 0 if nothing about them is left below the folders and everything could be read, and with 3
    otherwise, also where nothing was deleted because `purge.yes` was not given.

    Args:
        config: complete and checked.

    Raises:
        UserError: nobody or no folder is named, or a file cannot be written; repeat the command when that is mended.
        SystemExit: with code 3, see above.
    """
    settings = typed(config.purge, PurgeConfig)
    plan = purge(settings)
    if plan.rest or (plan.steps and not settings.yes):
        raise SystemExit(REMAINS)


def purge(settings: PurgeConfig) -> Plan:
    """Work the plan out, show it and, with `yes`, carry it out.

    Raises:
        UserError: see `run_purge`.
    """
    people = People(settings.subjects)
    console = Console(highlight=False)
    plan = make_plan(scan(settings.folders), people)
    show(plan, console, people)
    if settings.yes:
        _carry_out(plan, settings, people, console)
    elif plan.steps:
        console.print("Nothing has been changed. purge.yes=true does what the first table says.")
    if plan.rest:
        console.print(f"{len(plan.rest)} places are left to you, see above (exit code {REMAINS}).")
    elif not plan.steps:
        console.print(f"Nothing about them is stored in {', '.join(settings.folders)}.", soft_wrap=True)
    return plan


def _carry_out(plan: Plan, settings: PurgeConfig, people: People, console: Console) -> None:
    """Take the steps, then look again: what has come back or was not seen before is left to the reader."""
    if not plan.steps:
        console.print("There was nothing to delete.")
        return
    for done, step in enumerate(plan.steps):
        if any(is_locked(Run(folder)) for folder in step.path.parents):  # since the plan was made
            console.print(f"Stopped after {done} of {len(plan.steps)} files: a run has begun to write in {step.path.parent}.")
            break
        step.act()
    else:
        console.print(f"Done: {len(plan.steps)} files cleaned or deleted.")
    after = make_plan(scan(settings.folders), people)
    seen = {rest.path for rest in plan.rest}
    new = [rest for rest in after.rest if rest.path not in seen]
    new += [Rest(path=step.path, why="not clean yet, or not any more", remedy="Purge again.") for step in after.steps]
    if new:
        console.print(_rest_table("What is left afterwards", new, people))
        plan.rest += new


def show(plan: Plan, console: Console, people: People) -> None:
    """Print what is to be done, what cannot be, and what was not looked at."""
    if plan.steps:
        table = _table("What is deleted or cleaned", ("file", "what"))
        table.add_column("how many", justify="right")
        for step in plan.steps:
            table.add_row(escape(str(step.path)), escape(step.what), f"{step.count:,}")
        console.print(table)
    if plan.rest:
        console.print(_rest_table("What cannot be cleaned, was not read, or is not this program's", plan.rest, people))
    for note in plan.notes:
        console.print(escape(people.without_names(note)), soft_wrap=True)
    console.print("Copies, backups and models published elsewhere are not looked through either.")


def _rest_table(title: str, rests: Sequence[Rest], people: People) -> Table:
    table = _table(title, ("where", "why", "what to do"))
    for rest in rests:
        table.add_row(escape(str(rest.path)), escape(people.without_names(rest.why)), escape(rest.remedy))
    return table


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
