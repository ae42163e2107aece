"""Finds names in texts and in the names of files, however they are written: case, accents, separators, escapes."""

import html
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import unquote

from mmunlearn.data.spelling import folded, unescaped

PURGED = "(purged)"
"""Stands where a name stood."""
SHORTEST = 3
"""Letters that a name must have to be looked for inside texts: shorter ones are words like any other."""
_BETWEEN = r"[\s_+*\-]+"
"""What may stand between the words of a name in a text; nothing at all only in the name of a file."""
_ESCAPE = re.compile(r"(?:\\u[0-9a-fA-F]{4})+|\\U[0-9a-fA-F]{8}|\\x[0-9a-fA-F]{2}|\\[nrtbf/\"'\\]")
_TAG = re.compile(r"<[^<>]{0,2000}>")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
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
        self._spaced = _pattern(spoken, _BETWEEN)
        self._written = _pattern(_spellings(spoken), _BETWEEN, fold=False)
        self._joined = _pattern(spoken, r"[\W_]*")
        self.longer = frozenset(name for name in longer if self._spaced.search(folded(name)) and not self._is_one(name))
        self._longer_spaced = _pattern(self.longer, _BETWEEN)
        self._longer_written = _pattern(_spellings(self.longer), _BETWEEN, fold=False)
        self._longer_joined = _pattern(self.longer, r"[\W_]*")

    def _is_one(self, name: str) -> bool:
        return self._spaced.fullmatch(folded(name).strip()) is not None

    def named_in(self, text: str) -> bool:
        """Whether a text holds one of the names, as whole words, escaped or not."""
        return self.any and any(self._outside(form) for form in forms(text))

    def in_file_name(self, name: str) -> bool:
        """Whether the name of a file or folder holds one: `ada-example.png`, `AdaExample`, `ada%20example`."""
        if not self.any:
            return False
        spelled = folded(_HUMP.sub(" ", unquote(name)))
        return _free(self._joined, self._longer_joined, spelled)

    def without_names(self, text: str) -> str:
        """The text with the names replaced; all of it where a name is written in a form that cannot be cut out."""
        if not self.named_in(text):
            return text
        kept = [match.span() for match in self._longer_written.finditer(text)]
        replaced = self._written.sub(lambda found: found[0] if _inside(found.span(), kept) else PURGED, text)
        return PURGED if self.named_in(replaced) else replaced

    def _outside(self, text: str) -> bool:
        return _free(self._spaced, self._longer_spaced, folded(text))


def forms(text: str) -> Iterator[str]:
    """A text as it is, and as it reads when JSON, HTML and percent escapes are undone and HTML's tags are left out."""
    yield text
    if not any(mark in text for mark in "\\&%<"):
        return
    decoded = text
    for _ in range(_DEPTH):
        before, decoded = (
            decoded,
            unquote(html.unescape(_ESCAPE.sub(lambda found: unescaped(found[0]), decoded)), errors="ignore"),
        )
        if decoded == before:
            break
    if decoded != text:
        yield decoded
    if "<" in decoded:
        yield _TAG.sub(" ", decoded)
        yield _TAG.sub("", decoded)


def _spellings(names: Iterable[str]) -> set[str]:
    """Names as they may stand in a text: accents joined to their letters, apart from them, or left out."""
    return {form for name in names for form in (*(unicodedata.normalize(kind, name) for kind in ("NFC", "NFD")), folded(name))}


def _pattern(names: Iterable[str], between: str, *, fold: bool = True) -> re.Pattern[str]:
    """Any of the names as whole words, the longest first; matches nothing if there is none."""
    words = {tuple(each for each in re.split(_BETWEEN, folded(name) if fold else name) if each) for name in names} - {()}
    spelled = [between.join(map(re.escape, each)) for each in sorted(words, key=lambda each: (-len(" ".join(each)), each))]
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(spelled) or '(?!)'})(?![^\W_])", re.IGNORECASE)


def _free(names: re.Pattern[str], longer: re.Pattern[str], text: str) -> bool:
    """Whether a name stands in a text other than inside a longer one."""
    found = [match.span() for match in names.finditer(text)]
    if not found:
        return False
    around = [match.span() for match in longer.finditer(text)]
    return not all(_inside(span, around) for span in found)


def _inside(span: tuple[int, int], spans: Sequence[tuple[int, int]]) -> bool:
    return any(first <= span[0] and span[1] <= last for first, last in spans)
