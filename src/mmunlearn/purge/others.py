"""The last net: names of files and folders, files that no run wrote, and what in a run's folder nothing else looked into."""

from collections import Counter
from pathlib import Path

from mmunlearn.benchmarks.people_files import MANIFEST
from mmunlearn.purge.contents import ARROW, PICTURES, WEIGHTS, Unread, holds
from mmunlearn.purge.people import People
from mmunlearn.purge.scan import Scan
from mmunlearn.purge.steps import Order, Plan
from mmunlearn.run import Run

TABLES = (".parquet", *ARROW)
"""Endings of data sets of many files."""
_YOURS = "Not written by a run: change or delete it yourself."


def plan_others(plan: Plan, found: Scan, people: People) -> None:
    """List every file that names the people or could not be looked into, and every name of a file or folder that names them.

    What a run can make again is deleted instead. A data set of many files is one entry, and so are many unread files of a kind.
    """
    unread: dict[tuple[Path, str, str], list[Path]] = {}
    data_sets: Counter[Path] = Counter()
    planned = {step.path for step in plan.steps} | plan.read | {rest.path for rest in plan.rest}
    for path in (*found.inner, *found.others):
        if path in planned or not planned.isdisjoint(path.parents) or _is_judged_otherwise(path, found):
            continue
        try:
            held = holds(path, people)
        except Unread as why:
            unread.setdefault((path.parent, path.suffix, str(why)), []).append(path)
            continue
        if held and path in found.inner_set:
            _plan_inner(plan, path)
        elif held and path.suffix.lower() in TABLES:
            data_sets[_data_set(path)] += 1
        elif held:
            plan.leave([path], "names them", _YOURS)
    for path, count in data_sets.items():
        plan.leave([path], f"a data set: {count} of its files hold them", _YOURS)
    for (folder, suffix, reason), paths in unread.items():
        many = f"{len(paths)} files ({suffix or 'without an ending'}): " if len(paths) > 1 else ""
        plan.leave([folder if many else paths[0]], f"unread: {many}{reason}", "Look there.")
    _plan_file_names(plan, found, people)


def _is_judged_otherwise(path: Path, found: Scan) -> bool:
    """Weights, by whom they were made from; pictures of `mmunlearn inspect`, by whom they show."""
    if path not in found.inner_set:
        return False
    return path.suffix.lower() in WEIGHTS or (path.parent.name == "inspect" and path.suffix.lower() in PICTURES)


def _data_set(path: Path) -> Path:
    """The folder that holds all files of a data set."""
    return next((folder for folder in path.parents if (folder / MANIFEST).is_file()), path.parent)


def _plan_inner(plan: Plan, path: Path) -> None:
    """A file of a run that names the people, although no line of the run does."""
    run = Run(path.parent)
    if path in (run.results, run.probe):
        plan.delete(Order.numbers, path, "names them; score or probe again")
        plan.delete(Order.numbers, run.done, "the evaluation is no longer complete")
    elif path == run.lock:
        plan.delete(Order.answers, path, "left by a command that was killed")
    elif path == run.prepared:
        plan.delete(Order.answers, path, "likelihoods; a run that goes on computes them again")
    else:
        plan.leave([path], "names them", "Change or delete the file.")


def _plan_file_names(plan: Plan, found: Scan, people: People) -> None:
    """Names of files and folders that stay."""
    gone = {step.path for step in plan.steps if step.what.startswith("delete:")}
    runs = {each.run.root for each in found.runs}
    for path in found.entries:
        if path in gone:
            continue
        if people.in_file_name(path.name):
            plan.leave([path], "the folder's own name names them" if path in runs else "its own name names them", "Rename it.")
        elif path.suffix and people.has(path.stem):
            plan.leave([path], "its own name is that of one of them", "Look there.")
