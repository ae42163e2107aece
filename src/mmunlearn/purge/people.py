"""Who is to be purged, and how their traces are told: by subject, by example id, by the name in a text."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmunlearn.benchmarks.mllmu_rows import IMAGE, TEXT, subject
from mmunlearn.data.subjects import Part, normal_name, part_of_name
from mmunlearn.errors import ConfigError
from mmunlearn.purge.names import PURGED as PURGED
from mmunlearn.purge.names import Names

_MODALITIES = (IMAGE, TEXT)
_PREFIXED = ("Retain_Set", "public_figures", "Holdout_Set", "General_Set", "General_Train")
"""MLLMU-Bench's folders whose people have subjects other than their ids."""


class People:
    """The people to be purged."""

    def __init__(self, names: Sequence[str], others: Iterable[str] = ()) -> None:
        """Take the names.

        Args:
            names: as the benchmark's subjects name them, and any other names they are called by in texts.
            others: names of people who are not meant; those that have one of the names in them are told apart from it.

        Raises:
            ConfigError: there is no name.
        """
        self.names = tuple(dict.fromkeys(name for each in names if (name := normal_name(each))))
        if not self.names:
            raise ConfigError("purge.subjects is empty. Name people: 'purge.subjects=[Ada Example,Bo Sample]'")
        self._texts = Names(self.names, (name for each in others if (name := normal_name(each)) not in self.names))

    def numbers(self) -> list[str]:
        """Those of them who are named by a number."""
        return [name for name in self.names if name.isdecimal()]

    def beside(self, others: Iterable[str]) -> "People":
        """The same people, told apart from others whose names have theirs in them."""
        return People(self.names, others)

    @property
    def longest(self) -> int:
        """Letters of the longest name that is looked for in texts."""
        return self._texts.longest

    def has(self, name: object) -> bool:
        """Whether somebody is one of them."""
        return normal_name(name) in self.names

    def is_inside(self, name: object) -> bool:
        """Whether somebody else's name has one of theirs in it: “Ann Lee” that of “Ann”."""
        return normal_name(name) in self._texts.longer

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
        """Whether a text names one of them, see `Names`; never by digits alone or very short names."""
        return self._texts.named_in(text)

    def in_file_name(self, name: str) -> bool:
        """Whether the name of a file or folder names one of them."""
        return self._texts.in_file_name(name)

    def without_names(self, text: str) -> str:
        """The text with their names replaced; all of it where a name cannot be cut out."""
        return self._texts.without_names(text)

    def part(self, record: Mapping[str, Any]) -> Part | None:
        """What a run did with them, by its record of subjects; learned counts before unlearned.

        Raises:
            KeyError: this is not such a record.
        """
        found = set(self.parts(record).values())
        return next((part for part in (Part.learned, Part.forgot) if part in found), None)

    def parts(self, record: Mapping[str, Any]) -> dict[str, Part]:
        """What a run did with those of them who are in its record of subjects, by name.

        Raises:
            KeyError: this is not such a record.
        """
        found = {name: part_of_name(record, name) for name in self.names}
        return {name: part for name, part in found.items() if part is not None}


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
