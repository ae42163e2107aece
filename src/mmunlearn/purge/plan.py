"""What a purge has to do and what it has to leave, worked out before anything is changed.

The steps stand in an order in which a purge that was stopped half-way can be repeated: what tells whom a file is about goes
last. First the runs' records are completed, then pages and numbers that were computed with the people go, then what was said
about them, then their names in settings, and at the end the scores, which say whom each question is about.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmunlearn.data.subjects import Part, empty_record, normal_name, part_of_name, with_names
from mmunlearn.errors import RunError
from mmunlearn.purge import files
from mmunlearn.purge.chain import Chain
from mmunlearn.purge.models import Made, subjects_by_id
from mmunlearn.purge.others import plan_others
from mmunlearn.purge.people import People, subjects_in_id
from mmunlearn.purge.reports import plan_reports
from mmunlearn.purge.scan import TELLING, Scan, Written, is_file, is_plain, leftovers, object_or_nothing
from mmunlearn.purge.steps import Order, Plan, Step
from mmunlearn.run import CARD_FILE, read_json_lines, write_json

LONGEST_NUMBER = 4
"""Digits of a person's number, zeros before it included."""
AGAIN = "score again (without the people in the data)"


def make_plan(found: Scan, people: People) -> Plan:
    """Work out what has to be done.

    Args:
        found: what is in the folders.
        people: who is to be purged.
    """
    plan = Plan(rest=list(found.rest))
    _leave_other_spellings(plan, found.runs, people)
    people = people.beside(set(_everybody(found.runs)))
    made = Chain(found.runs, people).made_from()
    known = _subjects_by_source(found.runs)
    touched = [each for each in found.runs if _plan_answers(plan, each, people, known)]
    affected = {root for root, one in made.items() if one.part is not None} | {each.run.root for each in touched}
    for each in found.runs:
        if each.run.root in made:
            _plan_model(plan, each, made[each.run.root])
        _plan_files(plan, each, people, affected=each.run.root in affected)
    _plan_numbers(plan, touched)
    plan_reports(plan, found.runs, touched, people)
    plan_others(plan, found, people)
    plan.settle(found.busy())
    plan.notes += _notes([each for each in found.runs if each.run.root in affected])
    return plan


def _everybody(runs: Sequence[Written]) -> Iterator[str]:
    """Everybody whom the runs name as a person: a longer name among them is not one that is looked for."""
    for each in runs:
        yield from each.subjects.values()
        yield from map(str, files.to_be_forgotten(each.settings))
        scored = {path.name for path in each.lines("scores")}
        if each.asked.get("_target_") in TELLING:
            for path in each.lines("predictions"):
                if path.name not in scored:
                    yield from (person for example_id in _ids(path) for person in subjects_in_id(example_id))


def _leave_other_spellings(plan: Plan, runs: Sequence[Written], people: People) -> None:
    """Nobody has the number `6`, but somebody `006`: to say that nothing is stored would be no comfort."""
    for name in people.numbers():
        if any(name in _numbers_known(each, [name]) for each in runs):
            continue
        others = {f"{int(name):0{width}}" for width in range(1, LONGEST_NUMBER + 1)} - {name}
        for each in runs:
            for other in sorted(_numbers_known(each, others)):
                why = f"somebody here has the number {other}, and nobody has {name}"
                plan.leave([each.run.root], why, f"If {other} is meant, purge that number; else nothing is to be done.")


def _numbers_known(written: Written, numbers: Iterable[str]) -> set[str]:
    """Which of some numbers a run has a person of, by its questions or by its record of hashes."""
    record = object_or_nothing(written.run.subjects)
    people = set(map(normal_name, _everybody([written])))
    return {each for each in numbers if each in people or _is_recorded(record, each)}


def _is_recorded(record: Mapping[str, Any], name: str) -> bool:
    try:
        return part_of_name(record, name) is not None
    except KeyError:  # no record, or a damaged one
        return False


def _subjects_by_source(runs: Sequence[Written]) -> dict[str, dict[str, str]]:
    """Whom questions are about, by where they come from and by id."""
    known: dict[str, dict[str, str]] = {}
    for each in runs:
        if each.source:
            known.setdefault(each.source, {}).update(each.subjects)
    return known


# --- answers, likelihoods, pictures -----------------------------------------------------------------------------------


def _plan_answers(plan: Plan, written: Written, people: People, known: Mapping[str, Mapping[str, str]]) -> bool:
    """The lines and pictures of one run; whether there are any lines about the people or naming them."""
    subjects = {**known.get(written.source, {}), **written.subjects}
    subjects = _completed(plan, written, subjects)
    _plan_pictures(plan, written, people, subjects)
    touched = False
    for kind in ("predictions", "judged", "scores"):
        for path in written.lines(kind):
            try:
                found = files.in_lines(path, people, subjects)
            except RunError as error:
                plan.cannot(path, error)
                continue
            plan.read.add(path)
            touched = touched or found.about + found.naming > 0
            if found.unclear:
                why = f"{found.unclear} lines about somebody with a longer name name the shorter one: who is meant is open"
                plan.leave([path], why, "Read them; delete those that are about the person.")
            if count := found.about + found.naming + found.half:
                named = f", {found.naming} of them about others but with the name" if found.naming else ""
                named += ", one of them cut off by a kill" if found.half else ""
                order = Order.scores if kind == "scores" else Order.answers
                act = partial(files.drop_lines, path, people, subjects)
                plan.steps.append(Step(order=order, path=path, what=f"delete lines{named}", count=count, act=act))
    return touched


def _completed(plan: Plan, written: Written, subjects: dict[str, str]) -> dict[str, str]:
    """The subjects of a run's questions, where need be with the help of its data; what stays open is noted."""
    if written.asked.get("_target_") in TELLING:
        return subjects
    asked = {path: _ids(path) for path in written.lines("predictions")}
    pictured = {picture for picture in _pictures(written) if picture.stem not in _stems(subjects)}
    if not pictured and all(ids <= subjects.keys() for ids in asked.values()):
        return subjects
    subjects = {**(subjects_by_id(written) or {}), **subjects}
    for path, ids in asked.items():
        if count := len(ids - subjects.keys()):
            why = f"does not say whom {count} of its lines are about, and the data are not here"
            plan.leave([path], why, "Delete the file, or purge where the data are.")
    for picture in sorted(pictured):
        if picture.stem not in _stems(subjects):
            plan.leave([picture], "does not say whom it shows, and the data are not here", "Look at it.")
    return subjects


def _pictures(written: Written) -> list[Path]:
    """What `mmunlearn inspect` has drawn; named by the id of an example."""
    return [path for path in _files_below(written.run.root / "inspect") if path.suffix == ".png"]


def _stems(subjects: Mapping[str, str]) -> dict[str, str]:
    """Whom the pictures of `mmunlearn inspect` show, by their names."""
    return {example_id.replace("/", "_"): subject for example_id, subject in subjects.items()}


def _plan_pictures(plan: Plan, written: Written, people: People, subjects: Mapping[str, str]) -> None:
    stems = _stems(subjects)
    for picture in _pictures(written):
        shown = stems.get(picture.stem)
        if people.own_picture(picture.stem) if shown is None else people.has(shown):
            plan.delete(Order.answers, picture, "picture")


def _ids(path: Path) -> set[str]:
    try:
        return {str(line.get("id", "")) for line in read_json_lines(path)}
    except (RunError, OSError):
        return set()


# --- what a run keeps besides -----------------------------------------------------------------------------------------


def _plan_files(plan: Plan, written: Written, people: People, *, affected: bool) -> None:
    """Settings, commands, cards, pictures, trackers and leftovers of one run."""
    run = written.run
    _plan_names(plan, written, people)
    for path in _files_below(run.trackers):
        try:
            named = _names(path, people)
        except RunError as error:
            plan.cannot(path, error)
            continue
        plan.read.add(path)
        if named:
            plan.delete(Order.answers, path, "a tracker's file that names them")
    for left in leftovers(run.root):
        if is_file(left) and (affected or _names(left, people)):
            plan.delete(Order.answers, left, "left by a write that was killed")
        elif left.is_dir() and affected:
            plan.leave([left], "left by a write that was killed", "Delete it, unless a run is on.")


def _files_below(folder: Path) -> list[Path]:
    return [] if folder.is_symlink() else sorted(path for path in folder.rglob("*") if is_file(path))


def _names(path: Path, people: People) -> bool:
    """Whether a file of whatever kind has the people's names in it.

    Raises:
        RunError: it cannot be read.
    """
    with files.readable(path):
        return people.named_in(path.read_bytes().decode("utf-8", "ignore"))


def _plan_names(plan: Plan, written: Written, people: People) -> None:
    """The people's names in the settings, the recorded command and the cards of one run."""
    run = written.run
    cleaners: dict[Path, Callable[[Path, People], None]] = {run.config: files.clean_settings}
    cleaners |= dict.fromkeys((run.environment, run.model_card, run.saliency), files.clean_json)
    if is_plain(run.root, run.model.name):  # never through a link
        cleaners[run.model / CARD_FILE] = files.clean_json
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
        plan.read.add(path)
        if count:
            act = partial(clean, path, people)
            plan.steps.append(Step(order=Order.settings, path=path, what="take out names", count=count, act=act))


# --- models, masks, training states -----------------------------------------------------------------------------------

_UNLEARN = "Unlearn them, retrain without them, or delete the run."
_PROVE = "Delete the run, or keep it if its evaluation shows enough."


def _plan_model(plan: Plan, written: Written, made: Made) -> None:
    run = written.run
    kept = [path for path in (run.model, run.mask, run.checkpoints) if is_plain(run.root, path.name)]
    if made.part is None:
        if made.doubt:
            plan.leave(kept, f"uncertain: {made.doubt}", "Find out, or delete the run.")
        return
    if missing := made.unrecorded():
        act = partial(_note_parts, written, missing)
        count = sum(map(len, missing.values()))
        plan.steps.append(Step(order=Order.records, path=run.subjects, what="note their hashes", count=count, act=act))
    plan.delete(Order.answers, run.prepared, "likelihoods; a run that goes on computes them again")
    if run.is_done and run.checkpoints in kept:
        kept.remove(run.checkpoints)
        for path in _files_below(run.checkpoints):
            plan.delete(Order.answers, path, "training state of a finished run")
    how = {Part.learned: "learned them", Part.forgot: "unlearned them"}[made.part]
    if made.through is not None:
        how = f"was started from {made.through}, which has to do with them"
    remedy = _PROVE if made.part is Part.forgot else _UNLEARN
    for path in kept:
        plan.leave([path], _kind(path, how), remedy)


def _kind(path: Path, how: str) -> str:
    if path.name == "checkpoints":
        return f"a training state that {how}; the run was interrupted"
    return f"a mask that was worked out on them ({how})" if path.suffix == ".safetensors" else f"a model that {how}"


def _note_parts(written: Written, missing: Mapping[Part, Sequence[str]]) -> None:
    """Keep what was found out, which a purged configuration tells no longer, of those whom it was found out about."""
    path = written.run.subjects
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    record = object_or_nothing(path) or empty_record(key)
    for part, names in missing.items():
        record = with_names(record, part, names)
    write_json(path, record)


# --- numbers and pages ------------------------------------------------------------------------------------------------


def _plan_numbers(plan: Plan, touched: Sequence[Written]) -> None:
    """Numbers that were computed with the people."""
    for each in touched:
        for run in (each.run, *([each.above.run] if each.above else [])):
            plan.delete(Order.numbers, run.results, f"computed with them; {AGAIN}")
            plan.delete(Order.numbers, run.probe, "computed with them; probe again (without the people in the data)")
            plan.delete(Order.numbers, run.done, "the evaluation is no longer complete")


def _notes(affected: Sequence[Written]) -> list[str]:
    """What else an owner of these folders should look at."""
    notes = []
    data = {str(place) for each in affected for key in ("root", "train_root", "table") if (place := each.asked.get(key))}
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
