"""How the files of a run are read for traces of people and cleaned: each is replaced at once or left as it is."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from mmunlearn.errors import RunError
from mmunlearn.purge.people import People, subjects_in_id
from mmunlearn.run import explain_disk_errors, read_json_lines, write_json, write_json_lines, write_text

Subjects = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Found:
    """How many records of a file have to go."""

    about: int = 0
    """About one of the people."""
    naming: int = 0
    """About somebody else, but with the name of one of the people in it."""
    unclear: int = 0
    """About somebody else whose name has that of one of the people in it, and naming the shorter one: who is meant?"""
    half: int = 0
    """A last line that a kill cut off: it may be about anybody, and nobody reads it."""


def texts(value: Any) -> Iterator[str]:
    """Every text inside a JSON value, keys of objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts(inner)


def is_about(record: Mapping[str, Any], people: People, subjects: Subjects) -> bool:
    """Whether a line of predictions, scores or judgements is about one of the people."""
    if "subject" in record:
        return people.has(record["subject"])
    return people.own(str(record.get("id", "")), subjects)


def is_naming(record: Mapping[str, Any], people: People) -> bool:
    """Whether a line names one of the people."""
    return any(map(people.named_in, texts(record)))


def is_of_a_longer_name(record: Mapping[str, Any], people: People, subjects: Subjects) -> bool:
    """Whether a line is about somebody whose name has that of one of the people in it, who may go by the shorter one."""
    example_id = str(record.get("id", ""))
    known = record.get("subject", subjects.get(example_id))
    return any(map(people.is_inside, [known] if known is not None else subjects_in_id(example_id)))


def in_lines(path: Path, people: People, subjects: Subjects) -> Found:
    """What a JSON-lines file of a run holds about the people.

    Raises:
        RunError: it is damaged, or cannot be read.
    """
    about = naming = unclear = 0
    with readable(path):
        for record in read_json_lines(path):
            if not isinstance(record, dict):
                raise RunError(f"{path}: a line is no JSON object. Delete the file to compute it again.")
            if is_about(record, people, subjects):
                about += 1
            elif is_naming(record, people):
                known = is_of_a_longer_name(record, people, subjects)
                naming, unclear = naming + (not known), unclear + known
        return Found(about=about, naming=naming, unclear=unclear, half=int(_ends_in_half_a_line(path)))


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn a file that cannot be read into one clear message.

    Raises:
        RunError: the system does not let it be read.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}). Make it readable, and purge again.") from error


def _ends_in_half_a_line(path: Path) -> bool:
    last = path.read_bytes().rpartition(b"\n")[2]
    try:
        json.loads(last or b"{}")
    except ValueError:  # not JSON, or not UTF-8
        return True
    return False


def drop_lines(path: Path, people: People, subjects: Subjects) -> None:
    """Delete the lines about the people, those that name them, and one that a kill cut off."""

    def goes(record: Mapping[str, Any]) -> bool:
        if is_about(record, people, subjects):
            return True
        return is_naming(record, people) and not is_of_a_longer_name(record, people, subjects)

    write_json_lines(path, [record for record in read_json_lines(path) if not goes(record)])


# --- settings, commands, cards ----------------------------------------------------------------------------------------


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        RunError: it is something else.
    """
    try:
        with readable(path):
            value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise RunError(f"{path}: not JSON ({error}). Delete the file, or restore it, and purge again.") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: not a JSON object. Delete the file, or restore it, and purge again.")
    return value


def read_settings(path: Path) -> dict[str, Any]:
    """The recorded configuration of a run; empty if there is none or it is not one.

    Raises:
        RunError: it is no YAML.
    """
    if not path.is_file():
        return {}
    try:
        with readable(path):
            value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not YAML ({error}). Delete the file, or restore it, and purge again.") from error
    return value if isinstance(value, dict) else {}


def named_in_value(value: Any, people: People) -> int:
    """How many texts inside a value name the people; an entry of a list may be the name itself, of whatever length."""
    if isinstance(value, str):
        return int(people.named_in(value))
    if isinstance(value, Mapping):
        return sum(int(people.named_in(str(key))) + named_in_value(inner, people) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return sum(1 if _is_name(inner, people) else named_in_value(inner, people) for inner in value)
    return 0


def named_in_settings(settings: Mapping[str, Any], people: People) -> int:
    """How many texts of a recorded configuration name the people, numbers among those to be forgotten included."""
    numbers = [entry for entry in to_be_forgotten(settings) if not isinstance(entry, str) and people.has(entry)]
    return named_in_value(settings, people) + len(numbers)


def to_be_forgotten(settings: Mapping[str, Any]) -> list[Any]:
    """The list `data.forget`; empty if it is something else."""
    data = settings.get("data")
    forget = data.get("forget") if isinstance(data, Mapping) else None
    return list(forget) if isinstance(forget, list) else []


def without_people(value: Any, people: People) -> Any:
    """The value without the people: entries of lists that are their names go, other texts lose the name."""
    if isinstance(value, str):
        return people.without_names(value)
    if isinstance(value, Mapping):
        return {people.without_names(str(key)): without_people(inner, people) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_people(inner, people) for inner in value if not _is_name(inner, people)]
    return value


def _is_name(entry: Any, people: People) -> bool:
    return isinstance(entry, str) and people.has(entry)


def clean_json(path: Path, people: People) -> None:
    """Take the people's names out of a JSON file."""
    write_json(path, without_people(read_object(path), people))


def clean_settings(path: Path, people: People) -> None:
    """Take the people's names out of a recorded configuration, and the people off its list of those to be forgotten."""
    settings = read_settings(path)
    data = settings.get("data")
    if isinstance(data, dict) and isinstance(data.get("forget"), list):
        data["forget"] = [entry for entry in data["forget"] if not people.has(entry)]
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(without_people(settings, people))))


def delete(path: Path) -> None:
    """Delete a file; nothing if it is gone already."""
    with explain_disk_errors(path):
        path.unlink(missing_ok=True)
