"""Reads the rows of somebody's own table; problems are collected with their rows, so that all can be mended at once."""

import csv
import difflib
import io
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from mmunlearn.benchmarks.mllmu_files import unwritable
from mmunlearn.benchmarks.prompts import BLANK, LETTERS, mark_blank
from mmunlearn.benchmarks.pseudonyms import STAND_IN
from mmunlearn.errors import DataError, did_you_mean

REQUIRED = ("subject", "question", "answer")
"""Columns that a table must have."""
COLUMNS = (*REQUIRED, "image", "kind", "options", "reworded", "gender", "age")
"""All columns that are read."""
SHOWN = 20
"""So many problems are written out; the others are counted."""

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
_GENDERS = {"female": "female", "f": "female", "woman": "female", "male": "male", "m": "male", "man": "male"}
_OLDEST = 120
_YES, _NO = ("1", "yes", "true", "x"), ("", "0", "no", "false")


class Kind(StrEnum):
    """How a question is asked and scored."""

    choice = "choice"
    cloze = "cloze"
    generation = "generation"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question about one person."""

    where: str
    """File and row, as a spreadsheet counts, for messages."""
    subject: str
    question: str
    answer: str
    image: str
    """As it is written in the table; empty: none."""
    kind: Kind
    options: tuple[str, ...]
    reworded: bool
    """Asked in evaluations only."""
    gender: str = ""
    """female or male; empty: not said. Like the age, only stand-ins are chosen by it; it is never asked."""
    age: int | None = None
    """In years; None: not said."""


@dataclass
class Findings:
    """What is wrong with a table, and what is odd but was tolerated."""

    problems: list[str] = field(default_factory=list)
    tolerated: Counter[str] = field(default_factory=Counter)

    def add(self, where: object, problem: str) -> None:
        """Note a problem and where it is."""
        self.problems.append(f"{where}: {problem}")

    def raise_any(self) -> None:
        """End here if there is any problem.

        Raises:
            DataError: with up to 20 problems and the number of the others.
        """
        if not self.problems:
            return
        shown = self.problems[:SHOWN]
        if len(self.problems) > SHOWN:
            shown.append(f"… and {len(self.problems) - SHOWN} more problems of this table.")
        raise DataError("\n".join(shown))


def table_rows(path: Path, findings: Findings) -> list[Row]:
    """The rows of a CSV or JSONL file that have no problem.

    Args:
        path: the file; its ending says what it is.
        findings: takes the problems.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl"):
        findings.add(
            path, "is neither .csv, .tsv nor .jsonl. Save the table as “CSV UTF-8”, or as JSON with one object a line."
        )
        return []
    text = read_text(path, findings)
    if text is None:
        return []
    before = len(findings.problems)
    records = list(_json_records(path, text, findings) if suffix == ".jsonl" else _csv_records(path, text, findings))
    if not records and len(findings.problems) == before:
        findings.add(path, "has no rows. Write one question a row below the column names.")
    rows = [row for where, cells in records if (row := _row(where, cells, findings)) is not None]
    _check_repetitions(rows, findings)
    _check_persons(rows, findings)
    return rows


def read_text(path: Path, findings: Findings) -> str | None:
    """The text of a UTF-8 file, with or without byte order mark; None if it has another encoding or cannot be read."""
    try:
        encoded = path.read_bytes()
    except OSError as error:
        findings.add(path, f"cannot be read ({error.strerror}). Correct the path or its permissions.")
        return None
    try:
        return encoded.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = encoded.count(b"\n", 0, error.start) + 1
        findings.add(f"{path}, line {line}", "is not UTF-8. Save the file again as “CSV UTF-8” or with the encoding UTF-8.")
        return None


def plain_name(text: object) -> str:
    """A person's name without stray spaces and with accents in their usual form, so that equal names are equal."""
    return unicodedata.normalize("NFC", " ".join(str(text).split()))


# --- CSV --------------------------------------------------------------------------------------------------------------


def _csv_records(path: Path, text: str, findings: Findings) -> Iterator[tuple[str, Mapping[str, Any]]]:
    delimiter = _delimiter(text)
    reader = enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1)
    header: list[str] | None = None
    number = 0
    try:
        for number, cells in reader:
            where = f"{path}, row {number}"
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip().lower() for cell in cells]
                if not _check_columns(where, header, findings):
                    return
                continue
            if any(cell.strip() for cell in cells[len(header) :]):
                name = _DELIMITERS[delimiter]
                findings.add(
                    where,
                    f"has {len(cells)} cells, but there are {len(header)} columns. "
                    f"Put text with a {name} between quotation marks.",
                )
                continue
            record: dict[str, Any] = dict(zip(header, cells, strict=False))
            options = record.get("options", "")
            record["options"] = options.split("|") if options.strip() else None
            yield where, record
    except csv.Error as error:
        findings.add(
            f"{path}, row {number + 1}",
            f"cannot be read ({error}). Close its quotation marks, and double those inside a text.",
        )


def _delimiter(text: str) -> str:
    """The one that splits the first line into the most known columns, then into the most columns."""
    first = next((line for line in text.splitlines() if line.strip()), "")

    def columns(delimiter: str) -> tuple[int, int]:
        cells = [cell.strip().strip('"').lower() for cell in first.split(delimiter)]
        return sum(cell in COLUMNS for cell in cells), len(cells)

    return max(_DELIMITERS, key=columns)


def _check_columns(where: str, header: list[str], findings: Findings) -> bool:
    """Whether rows can be read under these column names."""
    before = len(findings.problems)
    unknown = [name for name in header if name not in COLUMNS and name]
    for name in REQUIRED:
        if name not in header:
            findings.add(where, f"the column {name!r} is missing. {did_you_mean(name, unknown or header)}")
    for name in sorted({name for name in header if name and header.count(name) > 1}):
        findings.add(where, f"the column {name!r} is there twice. Remove one of them.")
    if len(findings.problems) == before:
        for name in unknown:
            _check_unknown(where, name, header, findings)
    return len(findings.problems) == before


def _check_unknown(where: str, name: str, given: object, findings: Findings) -> None:
    """A column of another name is left aside, unless it is a misspelt one."""
    missing = [known for known in COLUMNS if isinstance(given, list | dict) and known not in given]
    if difflib.get_close_matches(name, missing, n=1, cutoff=0.75):
        findings.add(where, f"the column {name!r} is unknown. {did_you_mean(name, missing)}")
    else:
        findings.tolerated[f"column that is not read ({name})"] += 1


# --- JSON lines -------------------------------------------------------------------------------------------------------


def _json_records(path: Path, text: str, findings: Findings) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{path}, row {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            findings.add(where, f"is not JSON ({error}). Write one object a line.")
            continue
        if not isinstance(record, dict):
            findings.add(where, "is JSON, but not an object. Write one object a line, between braces.")
            continue
        if not isinstance(record.get("options"), list | None):
            findings.add(where, '\'options\' is not a list. Write ["one", "two"].')
            continue
        for name in record.keys() - set(COLUMNS):
            _check_unknown(where, name, record, findings)
        yield where, record


# --- cells ------------------------------------------------------------------------------------------------------------


def _row(where: str, cells: Mapping[str, Any], findings: Findings) -> Row | None:
    """A row, or None where it has a problem, which was noted."""
    before = len(findings.problems)
    text = {name: _text(where, name, cells.get(name), findings) for name in COLUMNS if name != "options"}
    for name in REQUIRED:
        if text[name] == "":
            findings.add(where, f"{name!r} is empty. Fill it in or remove the row.")
    if not plain_name(text["subject"]).isprintable():
        findings.add(where, "'subject' has characters that cannot be printed. Type the name again.")
    if text["subject"].casefold().startswith(STAND_IN):
        findings.add(where, f"'subject' begins with {STAND_IN.strip()!r}, as only fictitious people do. Write another name.")
    kind, flag = text["kind"].lower() or Kind.generation, text["reworded"].lower()
    if kind not in {*Kind}:
        findings.add(where, f"the kind {kind!r} is unknown. {did_you_mean(kind, map(str, Kind))}")
    if flag not in _YES + _NO:
        findings.add(where, f"'reworded' is {flag!r}. Write yes or no, or nothing.")
    gender, age = _gender(text["gender"], findings), _age(where, text["age"], findings)
    options = tuple(_text(where, "options", option, findings) for option in cells.get("options") or ())
    if len(findings.problems) > before:
        return None
    row = Row(
        where=where,
        subject=plain_name(text["subject"]),
        question=mark_blank(text["question"]) if kind == Kind.cloze else text["question"],
        answer=text["answer"],
        image=text["image"],
        kind=Kind(kind),
        options=options,
        reworded=flag in _YES,
        gender=gender,
        age=age,
    )
    _check_kind(row, findings)
    return row if len(findings.problems) == before else None


def _text(where: str, name: str, value: Any, findings: Findings) -> str:
    if value is None:
        return ""
    if name == "reworded" and isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or _endless(value):
        findings.add(where, f"{name!r} is {json.dumps(value)[:40]}. Write a text.")
        return "-"  # no second complaint, that it is empty
    if name != "image" and (bad := unwritable(str(value))):  # portraits have their own message
        findings.add(where, f"{name!r} holds {bad}, which no text has. Type it again.")
        return "-"
    return str(value).strip()


def _endless(value: str | int | float) -> bool:
    """Whether it is NaN or infinite, which JSON lets pass."""
    return isinstance(value, float) and not math.isfinite(value)


def _gender(text: str, findings: Findings) -> str:
    """female, male, or nothing: another gender is nobody's mistake, but there are no stand-ins drawn for it."""
    word = text.casefold()
    if word and word not in _GENDERS:
        findings.tolerated["person whose gender has no stand-ins of its own"] += 1
    return _GENDERS.get(word, "")


def _age(where: str, text: str, findings: Findings) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or int(text) > _OLDEST:
        findings.add(where, f"'age' is {text!r}. Write whole years, or nothing.")
        return None
    return int(text)


def _check_kind(row: Row, findings: Findings) -> None:
    if row.kind is Kind.cloze and BLANK not in row.question:
        findings.add(row.where, f"the question has no gap. Mark it with ____ or {BLANK}, or choose another kind.")
    if row.kind is not Kind.choice:
        if row.options:
            findings.add(row.where, f"has options, but its kind is {row.kind}. Set kind to choice, or remove the options.")
    elif len(row.options) < 2:
        findings.add(
            row.where, "a choice needs at least two options. In CSV they are separated by |, in JSONL they are a list."
        )
    elif not all(row.options):
        findings.add(row.where, "an option is empty. Fill it in or remove it.")
    elif len(set(row.options)) < len(row.options):
        findings.add(row.where, "an option is there twice. Remove one of them, so that chance is known.")
    elif len(row.options) > len(LETTERS):
        findings.add(row.where, f"has {len(row.options)} options, but there are {len(LETTERS)} letters. Remove some.")
    elif row.answer not in row.options:
        hint = did_you_mean(row.answer, row.options)
        findings.add(row.where, f"the answer {row.answer!r} is not among the options. {hint}")


def _check_repetitions(rows: list[Row], findings: Findings) -> None:
    """Rows that say the same twice, and names that differ so little that they may be one person's."""
    seen: dict[tuple[object, ...], Row] = {}
    spellings: dict[str, Row] = {}
    for row in rows:
        content = row.subject, row.question, row.answer, row.image, row.kind, frozenset(row.options), row.reworded
        if (first := seen.setdefault(content, row)) is not row:
            findings.add(row.where, f"says the same as {_number(first.where)}. Remove one of the two.")
        first = spellings.setdefault(row.subject.casefold(), row)
        if first.subject != row.subject:
            findings.add(
                row.where,
                f"{row.subject!r} is written {first.subject!r} in {_number(first.where)}. Write the name of one person in one "
                "way, else half of the questions would not be forgotten.",
            )


def _check_persons(rows: list[Row], findings: Findings) -> None:
    """A person has one gender and one age, in whichever rows they stand."""
    for column in ("gender", "age"):
        first: dict[str, Row] = {}
        for row in (row for row in rows if getattr(row, column) not in ("", None)):
            known = first.setdefault(row.subject, row)
            if getattr(known, column) != getattr(row, column):
                findings.add(row.where, f"{column!r} is another one than in {_number(known.where)}. Correct one of the two.")


def _number(where: str) -> str:
    found = re.search(r"row \d+$", where)
    return found[0] if found else where
