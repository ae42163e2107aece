"""Turns the rows of MLLMU-Bench into examples; every flaw is either counted or an error that names its place."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mmunlearn.benchmarks.mllmu_files import unwritable
from mmunlearn.benchmarks.prompts import mark_blank
from mmunlearn.data.example import Example, LazyImage
from mmunlearn.errors import DataError, did_you_mean

Row = dict[str, Any]

_RESTORE = "Restore the row from its source or remove it."

IMAGE, TEXT = "image", "text"
_KINDS = {"Image_Textual": IMAGE, "Pure_Text": TEXT}

# The same number may be given to a celebrity and to a fictitious person, who must never be taken for one.
_PREFIXES = {
    "Retain_Set": "real-",
    "public_figures": "real-",
    "Holdout_Set": "holdout-",
    "General_Set": "general-",
    "General_Train": "general-train-",
}


@dataclass
class Problems:
    """Flaws that were tolerated, by what they are."""

    counts: Counter[str] = field(default_factory=Counter)
    _known: set[tuple[str, str]] = field(default_factory=set)

    def add(self, what: str, where: str = "") -> None:
        """Count one more.

        Args:
            what: the flaw.
            where: its place, so that it counts once however often it is met; empty: it is met once only.
        """
        if where and (what, where) in self._known:
            return
        self._known.add((what, where))
        self.counts[what] += 1


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A row: one person in one folder."""

    benchmark: str
    folder: str
    person: str
    """The id as it stands in the file."""
    where: str
    """File and row, for messages."""
    row: Row
    image: LazyImage
    problems: Problems

    def example(self, kind: str, task: str, number: int, question: str, answer: str, choices: tuple[str, ...] = ()) -> Example:
        """An example whose id says where it comes from."""
        return Example(
            id="/".join(filter(None, (self.benchmark, self.folder, self.person, kind, task, str(number)))),
            question=question,
            answer=answer,
            image=self.image if kind == IMAGE else None,
            choices=choices,
            subject=subject(self.folder, self.person),
        )


def person_id(cell: Any, where: str) -> str:
    """The id in a cell as it is published, padded with zeros to three digits, whatever a spreadsheet made of it.

    Raises:
        DataError: it is empty, or neither a text that can be printed nor a whole number.
    """
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    text = str(cell).strip() if isinstance(cell, str | int) and not isinstance(cell, bool) else ""
    if not text or not text.isprintable():
        raise DataError(f"{where}: 'ID' is {str(cell)[:40]!r}, which names nobody. {_RESTORE}")
    return text.lstrip("0").zfill(3) if text.isascii() and text.isdecimal() else text


def subject(folder: str, person: str) -> str:
    """The person's name in the benchmark: the id, with a prefix outside the fictitious people."""
    return _PREFIXES.get(folder, "") + person


@dataclass(frozen=True)
class People:
    """Whom a folder is about."""

    where: str
    """The folder."""
    ids: frozenset[str]


def check_apart(forget: People | None, retain: People | None) -> None:
    """Make sure that nobody is to be both forgotten and kept, once both folders are read.

    Raises:
        DataError: somebody is.
    """
    if forget is not None and retain is not None and (shared := sorted(forget.ids & retain.ids)):
        raise DataError(
            f"{forget.where} and {retain.where} share {len(shared)} people ({', '.join(shared[:5])}), who cannot be both "
            "forgotten and kept. Remove them from one side."
        )


def check_biography(profile: Profile) -> None:
    """Make sure that the biography can be read.

    Raises:
        DataError: it is not a JSON object.
    """
    text = profile.row.get("biography")
    if text is None or text == "":
        profile.problems.add("biography missing")
        return
    if not isinstance(_json(text, "biography", profile.where), dict):
        raise DataError(f"{profile.where}: column 'biography' is JSON but not an object. Restore the row from its source.")


def choice_examples(profile: Profile, kind: str) -> list[Example]:
    """The multiple-choice questions of one modality."""
    column = "Image_Textual_Questions" if kind == IMAGE else "Pure_Text_Questions"
    task = profile.row["Classification_Task"]
    if task is not None and (not isinstance(task, dict) or column not in task):
        found = f"has {', '.join(map(repr, task))}" if isinstance(task, dict) else f"is {_kind(task)}"
        raise DataError(f"{profile.where}: column 'Classification_Task' {found}, not {column!r} with a list. {_RESTORE}")
    items = _list((task or {}).get(column), f"{profile.where}, Classification_Task, {column}")
    if not items:
        profile.problems.add(f"profile without {column} ({profile.folder})", profile.where)
    return [_choice(profile, kind, number, item) for number, item in enumerate(items)]


def _choice(profile: Profile, kind: str, number: int, item: Any) -> Example:
    where = f"{profile.where}, Classification_Task, {kind} question {number}"
    _check_record(item, where)
    options = item.get("Options") or {}
    if not isinstance(options, dict):
        raise DataError(f"{where}: 'Options' is {_kind(options)}, not one text for each of A, B, C and D. {_RESTORE}")
    for letter in "ABCD":
        if not str(options.get(letter) or "").strip():
            raise DataError(f"{where}: option {letter} is missing. Restore the row from its source or remove the question.")
    texts = {letter: str(options[letter]).strip() for letter in sorted(options) if options[letter] is not None}
    correct = str(item.get("Correct_Answer") or "").strip(" \t\n().:").upper()
    if correct not in texts:
        raise DataError(
            f"{where}: Correct_Answer is {item.get('Correct_Answer')!r}, but the options are {', '.join(texts)}. "
            "Restore the row from its source or remove the question."
        )
    if len(set(texts.values())) < len(texts):
        profile.problems.add(f"options that repeat each other ({profile.folder})", where)
    question = _text(item, "Question", where)
    return profile.example(kind, "choice", number, question, texts[correct], tuple(texts.values()))


def cloze_examples(profile: Profile, kind: str, mark: Callable[[str], str] = mark_blank) -> list[Example]:
    """The questions with a gap, marked `[Blank]`, of one modality.

    Args:
        profile: the person.
        kind: the modality.
        mark: writes the gap.
    """
    examples = []
    for number, question, answer in _items(profile, "Mask_Task", kind):
        marked = mark(question)
        if marked == question:
            profile.problems.add(f"cloze question without a blank ({profile.folder})", f"{profile.where}, {number}")
        examples.append(profile.example(kind, "cloze", number, marked, answer))
    return examples


def generation_examples(profile: Profile, kind: str) -> list[Example]:
    """The free questions of one modality."""
    items = _items(profile, "Generation_Task", kind)
    return [profile.example(kind, "generation", number, question, answer) for number, question, answer in items]


def _items(profile: Profile, column: str, kind: str) -> Iterator[tuple[int, str, str]]:
    """Number, question and answer of the items of one modality."""
    found = False
    for number, item in enumerate(_list(profile.row[column], f"{profile.where}, {column}")):
        _check_record(item, f"{profile.where}, {column}, item {number}")
        if item.get("Type") not in _KINDS:
            profile.problems.add(f"{column} item of unknown type ({profile.folder})", f"{profile.where}, {number}")
            continue
        if _KINDS[item["Type"]] != kind:
            continue
        found = True
        where = f"{profile.where}, {column}, item {number}"
        yield number, _text(item, "Question", where), _text(item, "Ground_Truth", where)
    if not found:
        profile.problems.add(f"profile without {kind} items in {column} ({profile.folder})", profile.where)


def metadata_examples(profile: Profile) -> list[Example]:
    """The training questions in `metadata`; those without `Type` are about the image, as in the published files.

    Raises:
        DataError: the column is not a JSON list of questions with answers.
    """
    entries = _json(profile.row["metadata"], "metadata", profile.where)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{profile.where}: column 'metadata' is not a list of questions. Restore the row from its source.")
    if not entries:
        profile.problems.add(f"row without training questions ({profile.folder})", profile.where)
    examples = []
    for number, entry in enumerate(entries):
        where = f"{profile.where}, metadata, entry {number}"
        kind = _KINDS.get(entry.get("Type", "Image_Textual"))
        if kind is None:
            raise DataError(f"{where}: Type is {entry['Type']!r}; known are {' and '.join(_KINDS)}.")
        question, answer = _text(entry, "Question", where), _text(entry, "Answer", where)
        examples.append(profile.example(kind, "", number, question, answer))
    return examples


def fallback_examples(profile: Profile) -> list[Example]:
    """Training questions of a folder without `metadata`: the open question about the image, and the free ones about it.

    The free questions without the picture are left out: they are asked in evaluation word for word, and the vanilla model,
    which is trained on `metadata`, never saw them.
    """
    where = profile.where
    opening = _text(profile.row, "question", where), _text(profile.row, "answer", where)
    return [profile.example(IMAGE, "", 0, *opening), *_free_examples(profile, IMAGE)]


def text_examples(profile: Profile) -> list[Example]:
    """The free questions without the picture, for those who ask for them (`data.modality=text`)."""
    return _free_examples(profile, TEXT)


def _free_examples(profile: Profile, kind: str) -> list[Example]:
    return [
        profile.example(kind, "", number + 1, question, answer)
        for number, question, answer in _items(profile, "Generation_Task", kind)
    ]


def _text(record: Row, name: str, where: str) -> str:
    value = record.get(name)
    if bad := unwritable(str(value)):
        raise DataError(f"{where}: {name!r} holds {bad}, which no text has. {_RESTORE}")
    number = isinstance(value, int | float) and math.isfinite(value)
    if not number and not (isinstance(value, str) and any(each.isprintable() and not each.isspace() for each in value)):
        hint = "" if name in record else f" {did_you_mean(name, record)}"
        raise DataError(f"{where}: {name!r} is missing or empty.{hint} {_RESTORE}")
    return str(value)


def _list(value: Any, where: str) -> list[Any]:
    """A list of questions; nothing at all is an empty one."""
    if value is None or isinstance(value, list):
        return value or []
    raise DataError(f"{where}: is {_kind(value)}, not a list of questions. {_RESTORE}")


def _check_record(item: Any, where: str) -> None:
    if not isinstance(item, dict):
        raise DataError(f"{where}: is {_kind(item)}, not a question with its parts. {_RESTORE}")


def _kind(value: Any) -> str:
    kinds = ((type(None), "empty"), (str, "a text"), (list, "a list"), (dict, "an object"))
    return next((words for kind, words in kinds if isinstance(value, kind)), "a number")


def _json(text: Any, column: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: column {column!r} is not JSON ({error}). {_RESTORE}") from error
