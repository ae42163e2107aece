"""What a purge has to do and what it has to leave, worked out before anything is changed.

The steps stand in an order in which a purge that was stopped half-way can be repeated: what tells whom a file is about goes
last. First the runs' records are completed, then pages and numbers that were computed with the people go, then what was said
about them, then their names in settings, and at the end the scores, which say whom each question is about.
"""

import hashlib
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from pathlib import Path

from mmunlearn.data.subjects import Part, empty_record, with_names
from mmunlearn.errors import RunError
from mmunlearn.purge import files
from mmunlearn.purge.models import Made, made_from, subjects_by_id
from mmunlearn.purge.others import others_rest
from mmunlearn.purge.people import People
from mmunlearn.purge.scan import CARD, TELLING, Rest, Scan, Written, is_file, leftovers, object_or_nothing
from mmunlearn.run import read_json_lines, write_json

AGAIN = "score again (without the people in the data)"


class Order(IntEnum):
    """When a step is taken."""

    records = 0
    reports = 1
    numbers = 2
    answers = 3
    settings = 4
    scores = 5


@dataclass(frozen=True, kw_only=True)
class Step:
    """One file that is deleted or cleaned."""

    order: Order
    path: Path
    what: str
    count: int
    """Of lines, entries or names; 1 for a whole file."""
    act: Callable[[], None] = field(repr=False)


@dataclass
class Plan:
    """Everything that is to be done and everything that cannot be."""

    steps: list[Step] = field(default_factory=list)
    rest: list[Rest] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def delete(self, order: Order, path: Path, why: str) -> None:
        """Delete a file, if it is there."""
        if is_file(path) and path not in {step.path for step in self.steps if step.order is not Order.settings}:
            self.steps.append(Step(order=order, path=path, what=f"delete: {why}", count=1, act=partial(files.delete, path)))

    def cannot(self, path: Path, error: RunError) -> None:
        """Leave a damaged file."""
        self.rest.append(Rest(path=path, why=f"damaged: {error}", remedy="Delete or restore it, and purge again."))


def make_plan(found: Scan, people: People) -> Plan:
    """Work out what has to be done.

    Args:
        found: what is in the folders.
        people: who is to be purged.
    """
    plan = Plan(rest=list(found.rest))
    made = made_from(found.runs, people)
    known = _subjects_by_source(found.runs)
    touched = [each for each in found.runs if _plan_answers(plan, each, people, known)]
    affected = {root for root, one in made.items() if one.part is not None} | {each.run.root for each in touched}
    for each in found.runs:
        if each.run.root in made:
            _plan_model(plan, each, people, made[each.run.root])
        _plan_files(plan, each, people, affected=each.run.root in affected)
    _plan_numbers(plan, touched)
    _plan_reports(plan, found.runs, touched, people)
    plan.rest += others_rest(found, people)
    plan.steps.sort(key=lambda step: (step.order, step.path))
    plan.rest = [*dict.fromkeys(sorted(plan.rest, key=lambda rest: rest.path))]
    plan.notes += _notes([each for each in found.runs if each.run.root in affected])
    return plan


def _subjects_by_source(runs: Sequence[Written]) -> dict[str, dict[str, str]]:
    """Whom questions are about, by where they come from and by id."""
    known: dict[str, dict[str, str]] = {}
    for each in runs:
        if each.source:
            known.setdefault(each.source, {}).update(each.subjects)
    return known


# --- answers, likelihoods, pictures -----------------------------------------------------------------------------------


def _plan_answers(plan: Plan, written: Written, people: People, known: Mapping[str, Mapping[str, str]]) -> bool:
    """The lines of one run; whether there are any about the people or naming them."""
    subjects = {**known.get(written.source, {}), **written.subjects}
    subjects = _completed(plan, written, subjects)
    touched = False
    for kind in ("predictions", "judged", "scores"):
        for path in written.lines(kind):
            try:
                found = files.in_lines(path, people, subjects)
            except RunError as error:
                plan.cannot(path, error)
                continue
            touched = touched or found.about + found.naming > 0
            if count := found.about + found.naming + found.half:
                named = f", {found.naming} of them about others but with the name" if found.naming else ""
                named += ", one of them cut off by a kill" if found.half else ""
                order = Order.scores if kind == "scores" else Order.answers
                act = partial(files.drop_lines, path, people, subjects)
                plan.steps.append(Step(order=order, path=path, what=f"delete lines{named}", count=count, act=act))
    return touched


def _completed(plan: Plan, written: Written, subjects: dict[str, str]) -> dict[str, str]:
    """The subjects of a run's questions, where need be with the help of its data; what stays open is noted."""
    if written.data.get("_target_") in TELLING:
        return subjects
    open_ones = {path: count for path in written.lines("predictions") if (count := len(_ids(path) - subjects.keys()))}
    if not open_ones:
        return subjects
    complete = subjects_by_id(written)
    if complete is not None:
        return {**complete, **subjects}
    for path, count in open_ones.items():
        why = f"does not say whom {count} of its lines are about, and the data are not here"
        plan.rest.append(Rest(path=path, why=why, remedy="Delete the file, or purge where the data are."))
    return subjects


def _ids(path: Path) -> set[str]:
    try:
        return {str(line.get("id", "")) for line in read_json_lines(path)}
    except RunError:
        return set()


# --- what a run keeps besides -----------------------------------------------------------------------------------------


def _plan_files(plan: Plan, written: Written, people: People, *, affected: bool) -> None:
    """Settings, commands, cards, pictures, trackers and leftovers of one run."""
    run = written.run
    _plan_names(plan, written, people)
    for picture in _files_below(run.root / "inspect"):
        if people.own_picture(picture.stem) or people.named_in(picture.stem.replace("_", " ")):
            plan.delete(Order.answers, picture, "picture")
    for path in _files_below(run.trackers):
        if _names(path, people):
            plan.delete(Order.answers, path, "a tracker's file that names them")
    for left in leftovers(run.root):
        if is_file(left) and (affected or _names(left, people)):
            plan.delete(Order.answers, left, "left by a write that was killed")
        elif left.is_dir() and affected:
            plan.rest.append(Rest(path=left, why="left by a write that was killed", remedy="Delete it, unless a run is on."))
    name = run.root.name
    if people.named_in(name) or people.named_in(name.replace("-", " ").replace("_", " ")):
        plan.rest.append(Rest(path=run.root, why="the folder's own name names them", remedy="Rename it."))


def _files_below(folder: Path) -> list[Path]:
    return [] if folder.is_symlink() else sorted(path for path in folder.rglob("*") if is_file(path))


def _names(path: Path, people: People) -> bool:
    """Whether a file of whatever kind has the people's names in it."""
    return people.named_in(path.read_bytes().decode("utf-8", "ignore"))


def _plan_names(plan: Plan, written: Written, people: People) -> None:
    """The people's names in the settings, the recorded command and the cards of one run."""
    run = written.run
    cleaners: dict[Path, Callable[[Path, People], None]] = {run.config: files.clean_settings}
    cleaners |= dict.fromkeys((run.environment, run.model_card, run.saliency, run.model / CARD), files.clean_json)
    for path, clean in cleaners.items():
        if not is_file(path):
            continue
        try:
            if path == run.config:
                count = files.named_in_settings(files.read_settings(path), people)
            else:
                count = files.named_in_value(files.read_object(path), people)
        except RunError as error:
            plan.cannot(path, error)
            continue
        if count:
            act = partial(clean, path, people)
            plan.steps.append(Step(order=Order.settings, path=path, what="take out names", count=count, act=act))


# --- models, masks, training states -----------------------------------------------------------------------------------

_UNLEARN = "Unlearn them, retrain without them, or delete the run."
_PROVE = "Delete the run, or keep it if its evaluation shows enough."


def _plan_model(plan: Plan, written: Written, people: People, made: Made) -> None:
    run = written.run
    kept = [path for path in (run.model, run.mask, run.checkpoints) if path.exists() and not path.is_symlink()]
    if made.part is None:
        if not made.certain:
            why = "does not record whom it was made from, and that cannot be found out from its data"
            plan.rest += [Rest(path=path, why=why, remedy="Find out, or delete the run.") for path in kept]
        return
    if not made.recorded:
        act = partial(_note_part, written, people, made.part)
        plan.steps.append(
            Step(order=Order.records, path=run.subjects, what="note their hashes", count=len(people.names), act=act)
        )
    plan.delete(Order.answers, run.prepared, "likelihoods; a run that goes on computes them again")
    if run.is_done and run.checkpoints in kept:
        kept.remove(run.checkpoints)
        for path in _files_below(run.checkpoints):
            plan.delete(Order.answers, path, "training state of a finished run")
    how = {Part.learned: "learned them", Part.forgot: "unlearned them"}[made.part]
    if made.through is not None:
        how = f"was started from {made.through}, which has to do with them"
    remedy = _PROVE if made.part is Part.forgot else _UNLEARN
    plan.rest += [Rest(path=path, why=_kind(path, how), remedy=remedy) for path in kept]


def _kind(path: Path, how: str) -> str:
    if path.name == "checkpoints":
        return f"a training state that {how}; the run was interrupted"
    return f"a mask that was worked out on them ({how})" if path.suffix == ".safetensors" else f"a model that {how}"


def _note_part(written: Written, people: People, part: Part) -> None:
    """Keep what was found out, which a purged configuration tells no longer."""
    path = written.run.subjects
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    record = object_or_nothing(path) or empty_record(key)
    write_json(path, with_names(record, part, people.names))


# --- numbers and pages ------------------------------------------------------------------------------------------------


def _plan_numbers(plan: Plan, touched: Sequence[Written]) -> None:
    """Numbers that were computed with the people."""
    for each in touched:
        for run in (each.run, *([each.above.run] if each.above else [])):
            plan.delete(Order.numbers, run.results, f"computed with them; {AGAIN}")
            plan.delete(Order.numbers, run.probe, "computed with them; probe again (without the people in the data)")
            plan.delete(Order.numbers, run.done, "the evaluation is no longer complete")


def _plan_reports(plan: Plan, runs: Sequence[Written], touched: Sequence[Written], people: People) -> None:
    asked = {each.fingerprint for each in runs} - {""}
    gone = {each.fingerprint for each in touched} - {""}
    for each in runs:
        run = each.run
        pages = [path for path in (run.report, *map(run.tables, ("md", "tex", "csv"))) if is_file(path)]
        made_of = {str(row["fingerprint"]) for row in each.rows}
        named = any(people.named_in(html.unescape(path.read_text(encoding="utf-8", errors="ignore"))) for path in pages)
        if made_of & gone or named or any(files.is_naming(row, people) for row in each.rows):
            for path in pages:
                plan.delete(Order.reports, path, "made from their answers; report again")
            if each.rows:
                plan.delete(Order.reports, run.results, "numbers of a report; report again")
        elif made_of - asked:
            why = f"made from {len(made_of - asked)} evaluations that are not in these folders, so it may be about them too"
            plan.rest.append(
                Rest(path=run.results, why=why, remedy="Name their folders in purge.folders too, or report again.")
            )


def _notes(affected: Sequence[Written]) -> list[str]:
    """What else an owner of these folders should look at."""
    notes = []
    data = {str(place) for each in affected for key in ("root", "train_root", "table") if (place := each.data.get(key))}
    if data:
        notes.append(f"Not looked through: the data these runs were made from ({', '.join(sorted(data))}).")
    sent = {name for each in affected for name in _trackers(each)}
    if sent:
        notes.append(f"Not looked through: what trackers keep elsewhere ({', '.join(sorted(sent))}).")
    if any(each.lines("judged") for each in affected):
        notes.append("Not looked through: what the judge keeps, to whose address their answers were sent.")
    return notes


def _trackers(written: Written) -> list[str]:
    trainer = written.settings.get("trainer")
    args = trainer.get("args") if isinstance(trainer, Mapping) else None
    return list(map(str, args.get("report_to") or ())) if isinstance(args, Mapping) else []
