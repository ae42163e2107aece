"""Names as they may be written in texts: case, accents, separators, escapes, several words as one. For who looks for names."""

import html
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

JOINED_LETTERS = 6
"""Letters that a name of several words must have to be looked for as one word without capitals: “Jo Li” is not in “joli”."""
HUMP = "\x1f"
"""Stands in a folded text before a capital behind a small letter or digit: `AdaExample`."""
_ALIKE = str.maketrans(dict.fromkeys("‘’‛ʼ`´", "'") | dict.fromkeys("‐‑‒–—―−", "-"))
_BLANK = rf"[\s_+*\-\\{HUMP}]+"
"""What stands between the words of a name; the backslash as in commands."""
_BETWEEN = rf"(?:{_BLANK}|\.)"
"""The same in a text, as in `ada.example`; not “Ada. Example”, which are two sentences."""
_ASCII_HUMP = re.compile("[a-z0-9][A-Z]")
_HEX = "[0-9a-fA-F]"
_LATER = rf"%(?:25)*[89abAB]{_HEX}"
"""A byte of UTF-8 that is not the first of its character; the sign is escaped again in addresses inside addresses."""
_ESCAPE = re.compile(
    rf"%(?:25)*(?:[0-7]{_HEX}|[cdCD]{_HEX}{_LATER}|[eE]{_HEX}{_LATER}{_LATER}|[fF][0-7]{_LATER}{_LATER}{_LATER})"
    rf"|\\+(?:(?:u{_HEX}{{4}})|U{_HEX}{{8}}|x{_HEX}{{2}}|[nrtbf/\"'])"
    r"|&(?:amp;)*#?\w{1,31};"
)
"""One character as addresses, JSON, Python and HTML write it."""


def folded(text: str) -> str:
    """A text without accents, case and invisible marks, with one kind of quotation mark and dash, for comparisons."""
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text)
        marks = {ord(each): None for each in set(text) if unicodedata.combining(each) or unicodedata.category(each) == "Cf"}
        text = text.translate({**_ALIKE, **marks})
    return text.casefold()


def unescaped(escape: str) -> str:
    r"""What a backslash and what follows it stand for: `\u00e9` (also several in a row), `\xe9`, `\U0001f600`, `\n`, `\"`."""
    if escape[1] == "u":
        units = b"".join(int(unit, 16).to_bytes(2, "big") for unit in escape.split("\\u")[1:])
        return units.decode("utf-16-be", "replace")
    if escape[1] in "Ux":
        number = int(escape[2:], 16)
        return chr(number) if number <= 0x10FFFF else escape
    return " " if escape[1] in "nrtbf" else escape[1]


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A folded text, and where each of its C characters stands in the text that it was made from."""

    text: str
    starts: Sequence[int]
    """[C]"""
    ends: Sequence[int]
    """[C]; accents and invisible marks that were left out belong to the character before them."""

    def place(self, found: re.Match[str]) -> tuple[int, int]:
        """Where something that was found in the folded text stands in the other one."""
        return self.starts[found.start()], self.ends[found.end() - 1]


class Spellings:
    """Finds names in texts, and where they stand."""

    def __init__(self, names: Iterable[str]) -> None:
        """Prepare to look for names, longer ones first.

        Args:
            names: as they are usually written.
        """
        ordered = sorted(names, key=lambda name: (-len(name), name))
        self._plain = _pattern(_plain(name) for name in ordered)
        self._humped = _pattern(_humped(name) for name in ordered)

    def places(self, text: str) -> list[tuple[int, int]]:
        r"""Start and end of every name, in order; none overlap, and of those that begin together the longest is taken.

        A name is found as whole words: with any case, with or without its accents, with blanks, `_`, `-`, `+`, `*`, a backslash
        or one point between its words, also where its characters are escaped (`%20`, `%C3%A9`, `\u00e9`, `&eacute;`). Names
        of several words without digits are also found joined, by capitals (`AdaExample`, also inside a longer such word) or,
        from `JOINED_LETTERS` letters on, without them (`adaexample`, as a whole word).
        """
        found: list[tuple[int, int]] = []
        for escapes in (False, True) if any(mark in text for mark in "%\\&") else (False,):
            plain = fold(text, escapes=escapes)
            found += map(plain.place, self._plain.finditer(plain.text))
            if not text.isascii() or _ASCII_HUMP.search(text):
                humped = fold(text, escapes=escapes, humps=True)
                found += map(humped.place, self._humped.finditer(humped.text))
        kept: list[tuple[int, int]] = []
        for start, end in sorted(found, key=lambda place: (place[0], -place[1])):
            if not kept or start >= kept[-1][1]:
                kept.append((start, end))
        return kept


def fold(text: str, *, escapes: bool = False, humps: bool = False) -> Folded:
    """A text as `folded` makes it.

    Args:
        text: the text.
        escapes: read escaped characters as what they stand for.
        humps: put `HUMP` before capitals inside words.
    """
    if text.isascii() and not escapes and not humps:
        return Folded(text=text.casefold(), starts=range(len(text)), ends=range(1, len(text) + 1))
    characters: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    last = ""
    for start, end, unit in _units(text, escapes):
        shown = folded(unit)
        if not shown and ends:
            ends[-1] = end
        elif shown:
            hump = HUMP if humps and unit[0].isupper() and (last.islower() or last.isdigit()) else ""
            characters.append(hump + shown)
            starts += [start] * len(hump + shown)
            ends += [start] * len(hump) + [end] * len(shown)
            last = unit[-1]
    return Folded(text="".join(characters), starts=starts, ends=ends)


def joined(name: str) -> str:
    """A name in a form that is the same for all its spellings: one word without points."""
    return re.sub(rf"{_BLANK}|\.", "", folded("".join(unit for _, _, unit in _units(name, escapes=True))))


def _units(text: str, escapes: bool) -> Iterator[tuple[int, int, str]]:
    """Start, end and content of every character, or of what stands for one."""
    place = 0
    for found in _ESCAPE.finditer(text) if escapes else ():
        yield from ((at, at + 1, text[at]) for at in range(place, found.start()))
        yield found.start(), found.end(), _decoded(found[0])
        place = found.end()
    yield from ((at, at + 1, text[at]) for at in range(place, len(text)))


def _decoded(escape: str) -> str:
    if escape[0] == "%":
        return unquote(re.sub("%(?:25)+(?=..)", "%", escape), errors="replace")
    if escape[0] == "&":
        return html.unescape(escape.replace("amp;", "")) or escape
    return unescaped("\\" + escape.lstrip("\\"))


def _words(name: str) -> list[str]:
    return [word for word in re.split(_BLANK, name) if word.strip(".")]


def _plain(name: str) -> str:
    """The pattern of a name in a text without humps; empty for a name without letters or digits."""
    words = _words(folded(name))
    may_join = sum(map(str.isalpha, "".join(words))) >= JOINED_LETTERS and not _has_digit(name)
    return f"{_BETWEEN}{'?' if may_join else ''}".join(map(_word, words))


def _humped(name: str) -> str:
    """The same in a text with humps; empty for names of one word and for identifiers."""
    words = [fold(word, humps=True).text for word in _words(name)]
    if len(words) < 2 or _has_digit(name):
        return ""
    return _BETWEEN.join(f"{HUMP}?".join(map(_word, word.split(HUMP))) for word in words)


def _has_digit(name: str) -> bool:
    return any(map(str.isdigit, name))


def _word(word: str) -> str:
    """The pattern of one word; the points of initials may be left out."""
    return re.escape(word).replace(r"\.", r"\.?")


def _pattern(spelled: Iterable[str]) -> re.Pattern[str]:
    """Any of them as whole words; matches nothing if there is none."""
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(filter(None, dict.fromkeys(spelled))) or '(?!)'})(?![^\W_])")
