"""Finds names in texts and in the names of files, however they are written: case, accents, separators, escapes."""

import html
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from mmunlearn.data.spelling import HUMP, Spellings, fold, folded, unescaped, unquoted

PURGED = "(purged)"
"""Stands where a name stood."""
SHORTEST = 3
"""Letters that a name must have to be looked for inside texts: shorter ones are words like any other."""
_ESCAPE = re.compile(r"(?:\\u[0-9a-fA-F]{4})+|\\U[0-9a-fA-F]{8}|\\x[0-9a-fA-F]{2}|\\[nrtbf/\"'\\]")
_TAG = re.compile(r"<[^<>]{0,2000}>")
_DEPTH = 3
"""Escapes inside escapes that are undone: JSON in JSON, an HTML entity in an address."""


class Names:
    """Some people's names, to be looked for."""

    def __init__(self, names: Iterable[str], longer: Iterable[str] = ()) -> None:
        """Prepare to look for names.

        Args:
            names: those that are looked for; those of digits alone and very short ones are left out.
            longer: names of other people that may have one of those in them: “Ada Example Jr” is not “Ada Example”.
        """
        spoken = [name for name in names if len(name) >= SHORTEST and not name.isdigit()]
        self.any = bool(spoken)
        """Whether there is anything to look for."""
        self.longest = max(map(len, spoken), default=0)
        self._own = Spellings(spoken)
        self._own_in_files = _file_pattern(spoken)
        self.longer = frozenset(name for name in longer if self._own.places(name) not in ([], [(0, len(name))]))
        self._longer = Spellings(self.longer)
        self._longer_in_files = _file_pattern(self.longer)

    def named_in(self, text: str) -> bool:
        """Whether a text holds one of the names, as whole words in any of their `Spellings`, escaped or not."""
        return self.any and any(self._free(form) for form in forms(text))

    def in_file_name(self, name: str) -> bool:
        """Whether the name of a file or folder holds one: `ada-example.png`, `AdaExample2`, `ada%20example`, `joli.png`."""
        if not self._own.may_be_in(name):
            return False
        for humps in (False, True):
            spelled = fold(name, escapes=True, humps=humps).text
            if _outside(_spans(self._own_in_files, spelled), _spans(self._longer_in_files, spelled)):
                return True
        return False

    def without_names(self, text: str) -> str:
        """The text with the names replaced; all of it where a name is written in a form that cannot be cut out."""
        if not self.named_in(text):
            return text
        parts, place = [], 0
        for start, end in self._free(text):
            parts += [text[place:start], PURGED]
            place = end
        replaced = "".join([*parts, text[place:]])
        return PURGED if self.named_in(replaced) else replaced

    def _free(self, text: str) -> list[tuple[int, int]]:
        """Where the names stand in a text other than inside longer ones."""
        found = self._own.places(text)
        return _outside(found, self._longer.places(text)) if found else []


def forms(text: str) -> Iterator[str]:
    """A text as it is, and as it reads when JSON, HTML and percent escapes are undone and HTML's tags are left out."""
    yield text
    if not any(mark in text for mark in "\\&%<"):
        return
    decoded = text
    for _ in range(_DEPTH):
        before, decoded = decoded, unquoted(html.unescape(_ESCAPE.sub(lambda found: unescaped(found[0]), decoded)))
        if decoded == before:
            break
    if decoded != text:
        yield decoded
    if "<" in decoded:
        yield _TAG.sub(" ", decoded)
        yield _TAG.sub("", decoded)


def _file_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Any of the names in that of a file, with anything or nothing between their words; matches nothing if there is none."""
    words = {tuple(re.findall(r"[^\W_]+", folded(name))) for name in names} - {()}
    spelled = [
        r"[\W_]*".join(f"{HUMP}?".join(map(re.escape, word)) for word in each) + ("" if each[-1][-1].isdigit() else r"\d*")
        for each in sorted(words, key=lambda each: (-len(" ".join(each)), each))
    ]
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(spelled) or '(?!)'})(?![^\W_])")


def _spans(names: re.Pattern[str], text: str) -> list[tuple[int, int]]:
    return [match.span() for match in names.finditer(text)]


def _outside(spans: Sequence[tuple[int, int]], around: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that lie inside none of the others, which are in order and do not overlap."""
    starts = [start for start, _ in around]
    return [(start, end) for start, end in spans if not ((at := bisect_right(starts, start)) and end <= around[at - 1][1])]
