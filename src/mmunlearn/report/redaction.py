"""Takes names out of texts."""

from collections.abc import Mapping
from functools import lru_cache
from unicodedata import normalize

from mmunlearn.data.spelling import Spellings, joined

SOMEBODY = "a person"
"""Stands for a name that several people may have in the spelling that was found."""


def redact(text: str, names: Mapping[str, str]) -> str:
    """Replace persons by their labels in a text that may name them, such as a configuration.

    Whole words only, however they are written, see `Spellings.places`: case, accents, what stands between the words (blanks,
    `_` or `-`, as in names of folders, or nothing), escapes. Identifiers of digits alone stay: they identify nobody to a
    reader, and replacing them would garble every number of the text.

    Args:
        text: the text.
        names: label by person, see `pseudonyms`.
    """
    spellings, labels = _prepared(tuple(names.items()))
    parts, place = [], 0
    for start, end in spellings.places(text) if labels else ():
        label = _label(text[start:end], labels)
        apart = "-" if label[-1:].isdigit() and text[end : end + 1].isdigit() else ""  # else person 2 would be person 23
        parts += [text[place:start], label, apart]
        place = end
    return "".join([*parts, text[place:]])


@lru_cache(maxsize=8)
def _prepared(names: tuple[tuple[str, str], ...]) -> tuple[Spellings, dict[str, dict[str, str]]]:
    """What finds the names, and whose they may be: by the joined form, label by name. A report has many texts to go through."""
    spoken = {name: label for name, label in names if not name.isdigit()}
    labels: dict[str, dict[str, str]] = {}
    for name, label in spoken.items():
        labels.setdefault(joined(name), {})[_exact(name)] = label
    return Spellings(spoken), labels


def _label(found: str, labels: Mapping[str, Mapping[str, str]]) -> str:
    """Of a name as it was found; where several people share its joined form the one who is written exactly so."""
    people = labels.get(joined(found), {})
    return next(iter(people.values())) if len(people) == 1 else people.get(_exact(found), SOMEBODY)


def _exact(name: str) -> str:
    return " ".join(normalize("NFC", name).lower().replace("_", " ").replace("-", " ").split())
