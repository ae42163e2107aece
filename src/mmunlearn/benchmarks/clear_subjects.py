"""Finds out whom each row of CLEAR is about: the `+tofu` folders, which are trained on, have no column with the name."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from mmunlearn.benchmarks.clear_rows import SETTINGS, TofuRow
from mmunlearn.benchmarks.mllmu_files import encoded_image, image_key, read_rows

AUTHOR_BLOCK = 20
"""Consecutive questions about one author, as in TOFU, from which CLEAR has its texts."""


class Roster:
    """Who is shown in which picture, from a folder that has the column `name`."""

    def __init__(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Remember names by content.

        Args:
            rows: picture key (empty: none), caption and name of each row.
        """
        self._by_image: defaultdict[str, set[str]] = defaultdict(set)
        self._by_caption: defaultdict[str, set[str]] = defaultdict(set)
        self.names: set[str] = set()
        """Everybody who is named."""
        for key, caption, name in rows:
            if not name:
                continue
            self.names.add(name)
            if key:
                self._by_image[key].add(name)
            if caption:
                self._by_caption[caption].add(name)

    def shown(self, key: str, caption: str) -> str:
        """The person in a picture with a caption; empty if the two leave it open.

        The picture decides, then the caption. A picture under two names is settled by its caption.
        """
        for candidates in (self._by_image.get(key, set()), self._by_caption.get(caption, set())):
            if len(candidates) == 1:
                return next(iter(candidates))
        return ""


def read_roster(files: Sequence[Path]) -> Roster:
    """The people of a folder with the columns `image`, `caption` and `name`; pictures are not kept.

    Raises:
        DataError: a file is damaged or a column is missing.
    """
    return Roster(
        (image_key(encoded) if (encoded := encoded_image(row["image"])) else "", _text(row["caption"]), _text(row["name"]))
        for _, row in read_rows(files, ("image", "caption", "name"), settings=SETTINGS)
    )


class Mentions:
    """Finds names in texts, whatever the case, accents and spaces."""

    def __init__(self, names: Collection[str]) -> None:
        """Prepare to look for some names."""
        self._names: Mapping[str, str] = {plain(name): name for name in sorted(names)}
        ordered = sorted(self._names, key=lambda name: (-len(name), name))
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, ordered))})(?!\w)") if ordered else None

    def find(self, text: str) -> str:
        """The longest name in a text, of equally long ones the first; empty if there is none."""
        if self._pattern is None:
            return ""
        return self._names[max(found, key=len)] if (found := self._pattern.findall(plain(text))) else ""


def plain(text: str) -> str:
    """A text without accents, case and repeated spaces, for comparisons."""
    letters = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return " ".join(letters.casefold().split())


def subjects(rows: Sequence[TofuRow], roster: Roster) -> list[str]:
    """The person of each row; empty where it stays unknown.

    Pictures first: by content, else by the name in the caption. Only people who are shown in the folder are looked for in
    its texts, so that a question about one person that mentions another, who is in the other split, goes to the first.

    Args:
        rows: all rows of one `+tofu` folder, in order.
        roster: of a folder with the same people, or more.
    """
    everybody = Mentions(roster.names)
    found = [
        roster.shown(row.image.key, row.caption) or everybody.find(row.caption) if row.image is not None else "" for row in rows
    ]
    members = Mentions({name for name in found if name} or roster.names)
    texts = [place for place, row in enumerate(rows) if row.image is None]
    named = [members.find(rows[place].question) or members.find(rows[place].answer) for place in texts]
    for place, name in zip(texts, _by_block(named), strict=True):
        found[place] = name
    return found


def _by_block(named: Sequence[str]) -> list[str]:
    """Give each block of questions the person whom most of its questions name.

    Some questions name nobody or somebody else. Where a block has no majority, as in a file in another order, and where
    the number of questions shows that some are missing, each question keeps its own.
    """
    found = list(named)
    if len(found) % AUTHOR_BLOCK:
        return found
    for start in range(0, len(found), AUTHOR_BLOCK):
        votes = Counter(name for name in found[start : start + AUTHOR_BLOCK] if name)
        leader, count = votes.most_common(1)[0] if votes else ("", 0)
        if count > 1 and 2 * count > votes.total():
            found[start : start + AUTHOR_BLOCK] = [leader] * AUTHOR_BLOCK
    return found


def _text(cell: object) -> str:
    return "" if cell is None else str(cell).strip()
