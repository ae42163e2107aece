"""Whom something was made from, written down so that a name can be looked up but no name can be read."""

import hashlib
import hmac
import unicodedata
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from mmunlearn.data.example import Example, examples_fingerprint

REMARK = "Keyed hashes of the people that went into this run, so that `mmunlearn purge` can ask whether a name is among them."


class Part(StrEnum):
    """What a run did with a person."""

    learned = "learned"
    forgot = "forgot"


def normal_name(name: object) -> str:
    """A name without stray spaces, in one form of accents and without case, so that equal names are equal."""
    return unicodedata.normalize("NFC", " ".join(str(name).split())).casefold()


def subjects_record(*, learned: Iterable[Example], forgot: Iterable[Example]) -> dict[str, Any]:
    """What a run writes down about its people.

    The hashes are HMAC-SHA256 under a key that stands in the record itself and differs from data set to data set. That keeps
    names out of sight and out of searches, and a table of hashed names made for one data set is useless for another. It does
    **not** keep anybody who holds the file from trying a name: this very question, “is NAME in there?”, is what the record is
    for. A slow hash would hardly help, since names are few; a secret key would have to be kept elsewhere and be lost there.

    Args:
        learned: questions that were trained on.
        forgot: questions that were unlearned.
    """
    sides = {Part.learned: tuple(learned), Part.forgot: tuple(forgot)}
    key = examples_fingerprint(example for examples in sides.values() for example in examples)
    record: dict[str, Any] = {"remark": REMARK, "key": key, "complete": True, **{str(part): [] for part in Part}}
    for part, examples in sides.items():
        record = with_names(record, part, {example.subject for example in examples if example.subject})
    return record


def empty_record(key: str) -> dict[str, Any]:
    """The record of a run that wrote none: a person who is not in it may still have been in the run.

    Args:
        key: of the hashes; not empty.
    """
    return {"remark": REMARK, "key": key, "complete": False, **{str(part): [] for part in Part}}


def with_names(record: Mapping[str, Any], part: Part, names: Iterable[str]) -> dict[str, Any]:
    """The record with further people, in an order that tells nothing."""
    added = {_hashed(str(record["key"]), name) for name in names}
    return {**record, str(part): sorted({*record[str(part)], *added})}


def part_of_name(record: Mapping[str, Any], name: str) -> Part | None:
    """What a run did with a person; None if the person is not in its record. Who was unlearned counts as that.

    Raises:
        KeyError: this is not such a record.
    """
    hashed = _hashed(str(record["key"]), name)
    return next((part for part in (Part.forgot, Part.learned) if hashed in record[str(part)]), None)


def _hashed(key: str, name: str) -> str:
    """128 bits, as hexadecimal digits."""
    return hmac.new(key.encode(), normal_name(name).encode(), hashlib.sha256).hexdigest()[:32]
