"""Names as they may be written in texts: case, accents, separators, escapes, several words as one. For who looks for names."""

import html
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

JOINED_LETTERS = 6
"""Letters that a name of several words must have to be looked for as one word without capitals: “Jo Li” is not in “joli”."""
HUMP = "\x1f"
"""Stands in a folded text before a capital behind a small letter or digit: `AdaExample`."""
_ALIKE = str.maketrans(dict.fromkeys("‘’‛ʼʻʾʿ′`´", "'") | dict.fromkeys("‐‑‒–—―−", "-"))
_LIGATURES = str.maketrans({"æ": "ae", "œ": "oe", "þ": "th", "ð": "d", "ŋ": "ng", "ĸ": "k"})
_STROKED = re.compile("LATIN SMALL LETTER (?:DOTLESS )?([A-Z])(?: WITH .+)?")
"""The Unicode names of letters that are written as a plain one where there is no better: ø, ł, đ, ħ."""
_BLANK = rf"[\s_+*\-\\{HUMP}]+"
"""What stands between the words of a name; the backslash as in commands."""
_BETWEEN = rf"(?:{_BLANK}|\.)"
"""The same in a text, as in `ada.example`; not “Ada. Example”, which are two sentences."""
_QUOTES = """'{1,3}|'"'"'"""
"""An apostrophe; YAML and shells double it inside quotation marks or put it into marks of its own."""
_SPLIT = re.compile("(?<=[a-z0-9])(?=[A-Z])")
_HEX = "[0-9a-fA-F]"
_LATER = rf"%(?:25)*[89abAB]{_HEX}"
"""A byte of UTF-8 that is not the first of its character; the sign is escaped again in addresses inside addresses."""
_ESCAPED = (
    rf"%(?:25)*(?:[cdCD]{_HEX}{_LATER}|[eE]{_HEX}{_LATER}{_LATER}|[fF][0-7]{_LATER}{_LATER}{_LATER}|{_HEX}{{2}})"
    rf"|\\+(?:(?:u{_HEX}{{4}})|U{_HEX}{{8}}|x{_HEX}{{2}}|[nrtbf/\"'])"
    r"|&(?:amp;)*#?\w{1,31};"
)
_ESCAPE = re.compile(_ESCAPED)
"""One character as addresses, JSON, Python and HTML write it."""
_SPECIAL = {False: re.compile(r"[^\x00-\x7f]"), True: re.compile(rf"{_ESCAPED}|[^\x00-\x7f]")}
"""What does not stand for itself, without and with escapes."""
_LONE = re.compile("[\udc80-\udcff]")
"""A byte that is no UTF-8, as `surrogateescape` has it."""
_NO_LETTERS = re.compile(r"[\W_]+")
_CUTS = frozenset(",:!?()[]{}<>=|^~@$")
"""They are in no spelling of a name that has none of them itself, nor in escapes."""
_BLOCK = 200
"""Characters that are looked through together; letter by letter only where they have a name's letters."""
_WORD_ENDS, _NUMBER_ENDS = r"(?!\d*[^\W\d_])", r"(?![^\W_])"
"""Behind names: a number may follow a letter, as in `ada_example2`; 42 is not 4."""


def folded(text: str) -> str:
    """A text without accents, case and invisible marks, with one kind of quotation mark and dash, for comparisons.

    Letters that Unicode does not take apart are those that are written for them: ø is o, ł is l, æ is ae.
    """
    if text.isascii():
        return text.casefold()
    return _letter(text) if len(text) == 1 else text.translate({ord(each): _letter(each) for each in set(text)})


@lru_cache(maxsize=1 << 12)
def _letter(character: str) -> str:
    apart = unicodedata.normalize("NFKD", character.translate(_ALIKE)).translate(_ALIKE)
    kept = (each for each in apart if not unicodedata.combining(each) and unicodedata.category(each) != "Cf")
    return "".join(map(_without_stroke, "".join(kept).casefold())).translate(_LIGATURES)


def _without_stroke(letter: str) -> str:
    found = None if letter.isascii() else _STROKED.fullmatch(unicodedata.name(letter, ""))
    return found[1].lower() if found else letter


def unescaped(escape: str) -> str:
    r"""What a backslash and what follows it stand for: `\u00e9` (also several in a row), `\xe9`, `\U0001f600`, `\n`, `\"`."""
    if escape[1] == "u":
        units = b"".join(int(unit, 16).to_bytes(2, "big") for unit in escape.split("\\u")[1:])
        return units.decode("utf-16-be", "replace")
    if escape[1] in "Ux":
        number = int(escape[2:], 16)
        return chr(number) if number <= 0x10FFFF else escape
    return " " if escape[1] in "nrtbf" else escape[1]


def unquoted(text: str) -> str:
    """A text without percent escapes; a byte that is no UTF-8 is taken for a letter of Western Europe: `Jos%E9`."""
    return _LONE.sub(lambda byte: chr(ord(byte[0]) - 0xDC00), unquote(text, errors="surrogateescape")) if "%" in text else text


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
        ordered = sorted((name for name in names if _words(folded(name))), key=lambda name: (-len(name), name))
        self._plain = _pattern(_plain(name) for name in ordered)
        self._humped = _pattern(_humped(name) for name in ordered)
        self._letters = tuple(dict.fromkeys(_NO_LETTERS.sub("", folded(name)) for name in ordered))
        cuts = _CUTS - set("".join(map(folded, ordered)))
        self._cut = re.compile(f"[{re.escape(''.join(sorted(cuts)))}]") if cuts else None

    def places(self, text: str) -> list[tuple[int, int]]:
        r"""Start and end of every name, in order; none overlap, and of those that begin together the longest is taken.

        A name is found as whole words: with any case, with or without its accents, with blanks, `_`, `-`, `+`, `*`, a backslash
        or one point between its words, also where its characters are escaped (`%20`, `%C3%A9`, `%E9`, `\u00e9`, `&eacute;`).
        Names of several words without digits are also found joined, by capitals (`AdaExample`, also inside a longer such word)
        or, from `JOINED_LETTERS` letters on, without them (`adaexample`, as a whole word). An apostrophe may be doubled, be
        what stands between words or, from as many letters on, be left out. A number may follow a name that ends in a letter
        (`ada_example2`); it is no part of what is found.
        """
        if not self.may_be_in(text):
            return []
        return [(first + start, first + end) for first, block in self._blocks(text) for start, end in self._in_block(block)]

    def may_be_in(self, text: str) -> bool:
        """Whether the letters of a name follow each other in a text, whatever is between them; tells most texts quickly."""
        return any(map(self._has_letters, (text, _ESCAPE.sub(_decoded, text)) if _may_have_escapes(text) else (text,)))

    def _has_letters(self, text: str) -> bool:
        letters = _NO_LETTERS.sub("", folded(text))
        return any(each in letters for each in self._letters)

    def _blocks(self, text: str) -> Iterator[tuple[int, str]]:
        """Parts of a text, and where they begin; cut where no name can be."""
        place = 0
        while self._cut and (found := self._cut.search(text, place + _BLOCK)):
            yield place, text[place : found.end()]
            place = found.end()
        yield place, text[place:]

    def _in_block(self, text: str) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for escapes in (False, True) if _may_have_escapes(text) else (False,):
            read = _ESCAPE.sub(_decoded, text) if escapes else text
            if (escapes and read == text) or not self._has_letters(read):
                continue
            plain = fold(text, escapes=escapes)
            found += map(plain.place, self._plain.finditer(plain.text))
            if escapes or not text.isascii() or _SPLIT.search(text):
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
    shown_units: list[str] = []
    starts, ends = array("L"), array("L")
    last = ""
    for start, end, unit in _units(text, escapes=escapes, humps=humps):
        shown = folded(unit)
        if not shown:
            ends[-1:] = array("L", [end][: len(ends)])
            continue
        if humps and unit[0].isupper() and (last.islower() or last.isdigit()):
            shown_units.append(HUMP)
            starts.append(start)
            ends.append(start)
        shown_units.append(shown)
        as_it_stands = len(shown) == len(unit) == end - start
        starts.extend(range(start, end) if as_it_stands else [start] * len(shown))
        ends.extend(range(start + 1, end + 1) if as_it_stands else [end] * len(shown))
        last = unit[-1]
    return Folded(text="".join(shown_units), starts=starts, ends=ends)


def joined(name: str) -> str:
    """A name in a form that is the same for all its spellings: one word without points and apostrophes."""
    return re.sub(rf"{_BLANK}|[.'\"]", "", folded(_ESCAPE.sub(_decoded, name)))


def _units(text: str, *, escapes: bool, humps: bool) -> Iterator[tuple[int, int, str]]:
    """Start, end and content of what stands for one character, and of the stretches of ASCII between, up to their humps."""
    place = 0
    for found in _SPECIAL[escapes].finditer(text):
        yield from _stretches(text, place, found.start(), humps)
        yield found.start(), found.end(), _decoded(found)
        place = found.end()
    yield from _stretches(text, place, len(text), humps)


def _stretches(text: str, start: int, end: int, humps: bool) -> Iterator[tuple[int, int, str]]:
    for found in _SPLIT.finditer(text, start, end) if humps else ():
        if found.start() > start:
            yield start, found.start(), text[start : found.start()]
            start = found.start()
    if end > start:
        yield start, end, text[start:end]


def _decoded(found: re.Match[str]) -> str:
    """What an escape stands for; a character that is none is itself."""
    escape = found[0]
    if escape[0] == "%":
        return unquoted(re.sub("%(?:25)+(?=..)", "%", escape))
    if escape[0] == "&":
        return html.unescape(escape.replace("amp;", "")) or escape
    return unescaped("\\" + escape.lstrip("\\")) if escape[0] == "\\" else escape


def _words(name: str) -> list[str]:
    return [word for word in re.split(_BLANK, name) if word.strip(".'")]


def _plain(name: str) -> str:
    """The pattern of a name in a text without humps; empty for a name without letters or digits."""
    words = _words(folded(name))
    long = sum(map(str.isalpha, "".join(words))) >= JOINED_LETTERS
    between = f"{_BETWEEN}{'?' if long and not _has_digit(name) else ''}"
    return between.join(_word(word, may_join=long) for word in words) + _end(words)


def _humped(name: str) -> str:
    """The same in a text with humps, which may be anywhere in a word; empty for names of one word and for identifiers."""
    words = _words(folded(name))
    if len(words) < 2 or _has_digit(name):
        return ""
    return _BETWEEN.join(_word(word, may_join=True, after=f"{HUMP}?") for word in words) + _end(words)


def _may_have_escapes(text: str) -> bool:
    return any(mark in text for mark in "%\\&")


def _has_digit(name: str) -> bool:
    return any(map(str.isdigit, name))


def _word(word: str, *, may_join: bool, after: str = "") -> str:
    """The pattern of one word; the points of initials may be left out, and apostrophes at its ends.

    Args:
        word: folded.
        may_join: whether nothing may stand for an apostrophe inside it.
        after: what stands behind every letter but the last.
    """
    inner = word.strip("'")
    apostrophe = f"(?:{_QUOTES}|{_BETWEEN}){'?' if may_join else ''}"
    letters = [{".": r"\.?", "'": apostrophe}.get(letter) or re.escape(letter) for letter in inner]
    first, last = ("'?" if word.startswith("'") else ""), ("'?" if word.endswith("'") else "")
    return first + after.join(letters) + last


def _end(words: Sequence[str]) -> str:
    """What may not follow a name."""
    letters = _NO_LETTERS.sub("", "".join(words))
    return _NUMBER_ENDS if letters[-1:].isdigit() else _WORD_ENDS


def _pattern(spelled: Iterable[str]) -> re.Pattern[str]:
    """Any of them as whole words; matches nothing if there is none."""
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(filter(None, dict.fromkeys(spelled))) or '(?!)'})")
