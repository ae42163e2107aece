"""`mmunlearn purge`: say what is stored about people, delete it where that is possible, and list where it is not."""

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmunlearn.config import PurgeConfig, typed
from mmunlearn.purge.people import People
from mmunlearn.purge.plan import Plan, make_plan
from mmunlearn.purge.scan import scan

REMAINS = 3
"""Exit code: something about the people is still there."""


def run_purge(config: DictConfig) -> None:
    """Find what is stored about people and, with `purge.yes`, delete it. Names are not printed, paths are.

    Ends the program with code 0 if nothing about them is left below the folders, and with 3 otherwise, also where nothing was
    deleted because `purge.yes` was not given.

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
        for step in plan.steps:
            step.act()
        console.print(f"Done: {len(plan.steps)} files cleaned or deleted." if plan.steps else "There was nothing to delete.")
    elif plan.steps:
        console.print("Nothing has been changed. purge.yes=true does what the first table says.")
    if plan.rest:
        console.print(f"{len(plan.rest)} places are left to you, see the table above (exit code {REMAINS}).")
    elif not plan.steps:
        console.print(f"Nothing about them is stored in {', '.join(settings.folders)}.", soft_wrap=True)
    return plan


def show(plan: Plan, console: Console, people: People) -> None:
    """Print what is to be done, what cannot be, and what was not looked at."""
    if plan.steps:
        table = _table("What is deleted or cleaned", ("file", "what"))
        table.add_column("how many", justify="right")
        for step in plan.steps:
            table.add_row(escape(str(step.path)), escape(step.what), f"{step.count:,}")
        console.print(table)
    if plan.rest:
        table = _table("What cannot be deleted line by line, or is not this program's", ("where", "why", "what to do"))
        for rest in plan.rest:
            table.add_row(escape(str(rest.path)), escape(people.without_names(rest.why)), escape(rest.remedy))
        console.print(table)
    for note in plan.notes:
        console.print(escape(people.without_names(note)), soft_wrap=True)
    console.print("Copies, backups and models published elsewhere are not looked through either.")


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
