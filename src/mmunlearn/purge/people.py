"""Who is to be purged, and how their traces are told: by subject, by example id, by the name in a text."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmunlearn.benchmarks.clear_subjects import Mentions
from mmunlearn.benchmarks.mllmu_rows import IMAGE, TEXT, subject
from mmunlearn.data.subjects import Part, normal_name, part_of_name
from mmunlearn.errors import ConfigError

PURGED = "(purged)"
"""Stands where a name stood."""
SHORTEST = 3
"""Letters that a name must have to be looked for inside texts: shorter ones are words like any other."""
_MODALITIES = (IMAGE, TEXT)
_PREFIXED = ("Retain_Set", "public_figures", "Holdout_Set", "General_Set", "General_Train")
"""MLLMU-Bench's folders whose people have subjects other than their ids."""


class People:
    """The people to be purged."""

    def __init__(self, names: Sequence[str]) -> None:
        """Take the names.

        Args:
            names: as the benchmark's subjects name them, and any other names they are called by in texts.

        Raises:
            ConfigError: there is no name.
        """
        self.names = tuple(dict.fromkeys(name for each in names if (name := normal_name(each))))
        if not self.names:
            raise ConfigError("purge.subjects is empty. Name people: 'purge.subjects=[Ada Example,Bo Sample]'")
        spoken = [name for name in self.names if len(name) >= SHORTEST and not name.isdigit()]
        self._mentions = Mentions(spoken)
        patterns = [r"\s+".join(map(re.escape, name.split())) for name in sorted(spoken, key=len, reverse=True)]
        self._words = re.compile(rf"(?<!\w)(?:{'|'.join(patterns)})(?!\w)", re.IGNORECASE)
        self._spoken = bool(spoken)

    def has(self, name: object) -> bool:
        """Whether somebody is one of them."""
        return normal_name(name) in self.names

    def own(self, example_id: str, subjects: Mapping[str, str]) -> bool:
        """Whether an example is about one of them.

        Args:
            example_id: as predictions have it.
            subjects: the subjects of examples, as far as they are known, by id; what they say stands.
        """
        known = subjects.get(example_id)
        return self.has(known) if known is not None else any(map(self.has, subjects_in_id(example_id)))

    def own_picture(self, stem: str) -> bool:
        """Whether a picture of `mmunlearn inspect`, named by an example id with `_` for `/`, is about one of them."""
        folded = normal_name(stem)
        return any(re.search(_picture_pattern(name), folded) for name in self.names)

    def named_in(self, text: str) -> bool:
        """Whether a text names one of them, whatever case, accents and spaces; never by digits alone or very short names."""
        return self._spoken and bool(self._mentions.find(text))

    def without_names(self, text: str) -> str:
        """The text with their names replaced; all of it where a name is written in another form."""
        if not self.named_in(text):
            return text
        replaced = self._words.sub(PURGED, text)
        return PURGED if self.named_in(replaced) else replaced

    def part(self, record: Mapping[str, Any]) -> Part | None:
        """What a run did with them, by its record of subjects; learned counts before unlearned.

        Raises:
            KeyError: this is not such a record.
        """
        found = {part_of_name(record, name) for name in self.names}
        return next((part for part in (Part.learned, Part.forgot) if part in found), None)


def subjects_in_id(example_id: str) -> Iterator[str]:
    """The people whom an id may be about.

    MLLMU-Bench and the embedded people write `benchmark/folder/person/modality/…`, own tables `table/subject/modality/…`, where
    the subject may have slashes. CLEAR's ids name nobody.
    """
    parts = example_id.split("/")
    if len(parts) > 3 and parts[3] in _MODALITIES:
        yield subject(parts[1], parts[2])
    for end in range(2, len(parts)):
        if parts[end] in _MODALITIES:
            yield "/".join(parts[1:end])


def _picture_pattern(name: str) -> str:
    """What the file name of a picture holds if it is about somebody; `name` is a normal name."""
    modality = f"_(?:{'|'.join(_MODALITIES)})(?:_|$)"
    plain = re.escape(name.replace("/", "_"))
    # The number of a fictitious person may be that of somebody else in the other folders.
    others = "".join(f"(?<!_{folder.lower()})" for folder in _PREFIXED)
    patterns = [f"{others}_{plain}{modality}"]
    for folder in _PREFIXED:
        prefix = subject(folder, "")
        if name.startswith(prefix):
            patterns.append(f"_{folder.lower()}_{re.escape(name.removeprefix(prefix))}{modality}")
    return "|".join(patterns)
