"""Turns the rows of CLEAR into pictures with captions, questions with answers, options, and captions with wrong ones."""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmunlearn.benchmarks.mllmu_files import ImageCache, encoded_image, read_rows
from mmunlearn.benchmarks.mllmu_rows import Problems
from mmunlearn.data.example import LazyImage
from mmunlearn.errors import DataError

SETTINGS = "data.root"
"""The setting that names another folder, for messages."""

_RESTORE = "Restore the row from its source or remove it."


@dataclass(frozen=True, kw_only=True)
class TofuRow:
    """A row of a `+tofu` folder: either a picture with a caption or a question with an answer."""

    number: int
    """Position in the folder, from 0."""
    image: LazyImage | None
    """None: a question without a picture."""
    caption: str
    """Empty in a row without a picture."""
    question: str
    answer: str
    """Question and answer are empty in a row with a picture."""


@dataclass(frozen=True, kw_only=True)
class OptionsRow:
    """A row with a picture and a multiple-choice question about it."""

    number: int
    image: LazyImage
    question: str
    """Empty in the `_perturbed` folders."""
    answer: str
    """The right option; in the `_perturbed` folders and in `real_faces` the name of the person."""
    options: tuple[str, ...]
    """All of them, the right one at a place that seed and content decide."""

    @property
    def wrong(self) -> tuple[str, ...]:
        """The others than the right one."""
        return tuple(option for option in self.options if option != self.answer)


@dataclass(frozen=True, kw_only=True)
class CaptionRow:
    """A row of a `_perturbed` folder, as far as its caption goes."""

    number: int
    image: LazyImage
    name: str
    caption: str
    paraphrase: str
    """The caption in other words; empty, and no wrong captions either, where the row lacks one or the other."""
    wrong: tuple[str, ...]
    """Captions that are wrong about the person."""


def drawn(count: int, *words: object) -> int:
    """A number below `count` that only the words decide, on every machine."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % count


def tofu_rows(files: Sequence[Path], images: ImageCache) -> list[TofuRow]:
    """The rows of a `+tofu` folder.

    Raises:
        DataError: a row is neither a picture with a caption nor a question with an answer, or is both.
    """
    columns = ("image", "caption", "question", "answer")
    return [
        _tofu_row(number, where, row, images)
        for number, (where, row) in enumerate(read_rows(files, columns, settings=SETTINGS))
    ]


def _tofu_row(number: int, where: str, row: dict[str, Any], images: ImageCache) -> TofuRow:
    shown = bool(encoded_image(row["image"]))
    caption, question, answer = (_words(row[name]) for name in ("caption", "question", "answer"))
    if shown and not question and not answer:
        if not caption:
            raise DataError(f"{where}: has a picture, but 'caption' is missing or empty. {_RESTORE}")
        image = images.add(row["image"], where)
        return TofuRow(number=number, image=image, caption=caption, question="", answer="")
    if not shown and question and answer:
        return TofuRow(number=number, image=None, caption="", question=question, answer=answer)
    filled = {"image": shown, "caption": caption, "question": question, "answer": answer}
    found = ", ".join(name for name, value in filled.items() if value) or "nothing"
    raise DataError(
        f"{where}: must be a picture with a caption or a question with an answer, but it has {found}. {_RESTORE}"
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OptionsColumns:
    """Where the parts of a multiple-choice question stand."""

    question: str
    """Empty: there is no such column, or it is not used."""
    answer: str
    wrong: str


def options_rows(
    files: Sequence[Path], columns: OptionsColumns, images: ImageCache, *, seed: int, problems: Problems
) -> list[OptionsRow]:
    """The rows of a folder with multiple-choice questions.

    Args:
        files: of the folder.
        columns: their names.
        images: keeps the pictures.
        seed: decides the place of each right option, together with the picture and the question.
        problems: counts options that repeat each other.

    Raises:
        DataError: a row lacks its picture, its question, its answer or all wrong options.
    """
    found = []
    names = [name for name in (columns.question, columns.answer, columns.wrong) if name]
    for number, (where, row) in enumerate(read_rows(files, ("image", *names), settings=SETTINGS)):
        answer = _words(row[columns.answer])
        question = _words(row[columns.question]) if columns.question else ""
        for name, text in ((columns.answer, answer), (columns.question, question)):
            if name and not text:
                raise DataError(f"{where}: {name!r} is missing or empty. {_RESTORE}")
        wrong = _wrong_options(row[columns.wrong], answer, f"{where}: {columns.wrong!r}")
        if len(wrong) < len(row[columns.wrong]):
            problems.add(f"options that repeat each other ({files[0].parent.name})")
        image = images.add(row["image"], where)
        place = drawn(len(wrong) + 1, seed, "options", image.key, question, answer)
        options = (*wrong[:place], answer, *wrong[place:])
        found.append(OptionsRow(number=number, image=image, question=question, answer=answer, options=options))
    return found


def caption_rows(files: Sequence[Path], images: ImageCache, problems: Problems) -> list[CaptionRow]:
    """The captions of a `_perturbed` folder, each with a paraphrase and wrong captions.

    Args:
        files: of the folder.
        images: keeps the pictures.
        problems: counts rows that have nothing to compare their caption with, and wrong captions that repeat another one.

    Raises:
        DataError: a row lacks its picture, its caption or its name, or its wrong captions are no list of texts.
    """
    columns = ("image", "caption", "name", "paraphrased_caption", "perturbed_captions")
    found = []
    for number, (where, row) in enumerate(read_rows(files, columns, settings=SETTINGS)):
        caption, name, paraphrase = (_words(row[column]) for column in ("caption", "name", "paraphrased_caption"))
        for column, text in (("caption", caption), ("name", name)):
            if not text:
                raise DataError(f"{where}: {column!r} is missing or empty. {_RESTORE}")
        cell = row["perturbed_captions"] or []
        wrong = _others(cell, (caption, paraphrase), f"{where}: 'perturbed_captions'")
        if len(wrong) < len(cell):
            problems.add(f"wrong captions that repeat each other ({files[0].parent.name})")
        if not (wrong and paraphrase):
            problems.add(f"caption without a paraphrase or without wrong ones ({files[0].parent.name})")
            paraphrase, wrong = "", ()
        image = images.add(row["image"], where)
        found.append(
            CaptionRow(number=number, image=image, name=name, caption=caption, paraphrase=paraphrase, wrong=wrong)
        )  # fmt: skip
    return found


class CaptionIndex:
    """Finds a caption's row by content: the folders do not hold the same rows, so their numbers say nothing."""

    def __init__(self, rows: Iterable[CaptionRow]) -> None:
        """Remember rows by picture and caption."""
        self._by_both: dict[tuple[str, str], CaptionRow] = {}
        self._by_caption: defaultdict[str, list[CaptionRow]] = defaultdict(list)
        for row in rows:
            self._by_both[row.image.key, row.caption] = row
            self._by_caption[row.caption].append(row)

    def find(self, key: str, caption: str) -> CaptionRow | None:
        """The row of a picture with this caption, or the only row with this caption if its picture was saved anew."""
        same = self._by_caption.get(caption, [])
        return self._by_both.get((key, caption)) or (same[0] if len(same) == 1 else None)


def _others(cell: Any, right: Collection[str], where: str) -> tuple[str, ...]:
    """Each text of a list once, in the order of the file, without the right ones."""
    if not isinstance(cell, list) or not all(isinstance(option, str) and option.strip() for option in cell):
        raise DataError(f"{where} is not a list of texts. {_RESTORE}")
    known = {text.casefold() for text in right}
    return tuple(dict.fromkeys(text for option in cell if (text := _words(option)).casefold() not in known))


def _wrong_options(cell: Any, answer: str, where: str) -> tuple[str, ...]:
    """Each wrong option once, in the order of the file."""
    wrong = _others(cell, (answer,), where)
    if not wrong:
        raise DataError(f"{where} has no wrong option, so there is nothing to choose from. {_RESTORE}")
    return wrong


def _words(cell: Any) -> str:
    """The text of a cell without space around it; empty for None."""
    return "" if cell is None else str(cell).strip()
