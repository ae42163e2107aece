"""Turns the rows of MLLMU-Bench into examples; every flaw is either counted or an error that names its place."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mmunlearn.benchmarks.prompts import mark_blank
from mmunlearn.data.example import Example, LazyImage
from mmunlearn.errors import DataError

Row = dict[str, Any]

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

    def add(self, what: str) -> None:
        """Count one more."""
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


def subject(folder: str, person: str) -> str:
    """The person's name in the benchmark: the id, with a prefix outside the fictitious people."""
    return _PREFIXES.get(folder, "") + person


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
    items = task.get(column) if isinstance(task, dict) else None
    if not items:
        profile.problems.add(f"profile without {column} ({profile.folder})")
        return []
    return [_choice(profile, kind, number, item) for number, item in enumerate(items)]


def _choice(profile: Profile, kind: str, number: int, item: Row) -> Example:
    where = f"{profile.where}, Classification_Task, {kind} question {number}"
    options = item.get("Options") or {}
    for letter in "ABCD":
        if not str(options.get(letter) or "").strip():
            raise DataError(f"{where}: option {letter} is missing. Restore the row from its source or remove the question.")
    texts = {letter: str(options[letter]).strip() for letter in sorted(options) if options[letter] is not None}
    correct = str(item.get("Correct_Answer") or "").strip().rstrip(".:)").upper()
    if correct not in texts:
        raise DataError(
            f"{where}: Correct_Answer is {item.get('Correct_Answer')!r}, but the options are {', '.join(texts)}. "
            "Restore the row from its source or remove the question."
        )
    if len(set(texts.values())) < len(texts):
        profile.problems.add(f"options that repeat each other ({profile.folder})")
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
            profile.problems.add(f"cloze question without a blank ({profile.folder})")
        examples.append(profile.example(kind, "cloze", number, marked, answer))
    return examples


def generation_examples(profile: Profile, kind: str) -> list[Example]:
    """The free questions of one modality."""
    items = _items(profile, "Generation_Task", kind)
    return [profile.example(kind, "generation", number, question, answer) for number, question, answer in items]


def _items(profile: Profile, column: str, kind: str) -> Iterator[tuple[int, str, str]]:
    """Number, question and answer of the items of one modality."""
    found = False
    for number, item in enumerate(profile.row[column] or ()):
        if item.get("Type") not in _KINDS:
            if kind == IMAGE:  # each list is read once a modality: count once
                profile.problems.add(f"{column} item of unknown type ({profile.folder})")
            continue
        if _KINDS[item["Type"]] != kind:
            continue
        found = True
        where = f"{profile.where}, {column}, item {number}"
        yield number, _text(item, "Question", where), _text(item, "Ground_Truth", where)
    if not found:
        profile.problems.add(f"profile without {kind} items in {column} ({profile.folder})")


def metadata_examples(profile: Profile) -> list[Example]:
    """The training questions in `metadata`; those without `Type` are about the image, as in the published files.

    Raises:
        DataError: the column is not a JSON list of questions with answers.
    """
    entries = _json(profile.row["metadata"], "metadata", profile.where)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{profile.where}: column 'metadata' is not a list of questions. Restore the row from its source.")
    if not entries:
        profile.problems.add(f"row without training questions ({profile.folder})")
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
    """Training questions of a folder without `metadata`: the open question about the image, and the free questions."""
    where = profile.where
    opening = _text(profile.row, "question", where), _text(profile.row, "answer", where)
    return [
        profile.example(IMAGE, "", 0, *opening),
        *(
            profile.example(kind, "", number + 1, question, answer)
            for kind in (IMAGE, TEXT)
            for number, question, answer in _items(profile, "Generation_Task", kind)
        ),
    ]


def _text(record: Row, name: str, where: str) -> str:
    value = record.get(name)
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise DataError(f"{where}: {name!r} is missing or empty. Restore the row from its source or remove it.")
    return str(value)


def _json(text: Any, column: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: column {column!r} is not JSON ({error}). Restore the row from its source.") from error
