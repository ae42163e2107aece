"""Looks into files of any kind for the people. A file is read whole, or the reader is told that it was not."""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from mmunlearn.benchmarks.mllmu_rows import subject
from mmunlearn.purge.files import texts
from mmunlearn.purge.people import People, subjects_in_id

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npy", ".npz")
ARROW = (".arrow", ".feather", ".ipc")
CHUNK = 1 << 22
"""Characters that are searched at a time."""
_MOST_FOREIGN = 1 << 26
"""Bytes of a file in an unknown encoding that are searched nevertheless; it counts as unread either way."""
_ESCAPED = 24
"""Characters that one letter of a name may take when it is escaped."""
_ROWS = 64
"""Rows that are read at a time: they may hold pictures."""
_PACKED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
"""How compressed files begin, and what opens them."""
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_PICTURE_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_NAMING = ("subject", "name", "person")
"""Columns that say whom a row is about, beside MLLMU-Bench's `ID` and the `id` of an example."""


_ROWS_OF_TEXT = (".csv", ".tsv", ".jsonl", ".json")


class Unread(Exception):  # noqa: N818 - it is no error of the program
    """A file could not be read whole, and what was read of it does not name the people."""


def holds(path: Path, people: People) -> bool:
    """Whether a file holds the people.

    Raises:
        Unread: that cannot be told: pictures, weights, archives, unknown formats, damaged files.
    """
    if path.suffix.lower() in PICTURES:
        raise Unread("pictures are not looked at")
    if path.suffix.lower() in WEIGHTS:
        raise Unread("weights and numbers cannot be looked into")
    try:
        with path.open("rb") as file:
            beginning = file.read(8)
        if beginning.startswith(b"PAR1"):
            return _in_parquet(path, people)
        if beginning.startswith(b"ARROW1") or path.suffix.lower() in ARROW:
            return _in_arrow(path, people)
        return _in_text(path, people) or _in_rows_of_text(path, people)
    except (OSError, EOFError, lzma.LZMAError, pa.ArrowException) as error:
        raise Unread(f"cannot be read ({(str(error).splitlines() or [type(error).__name__])[0]})") from error


# --- texts ------------------------------------------------------------------------------------------------------------


def _opened(path: Path) -> tuple[IO[bytes], str]:
    """A file, decompressed where need be, and its encoding."""
    file: IO[bytes] = path.open("rb")
    beginning = file.read(8)
    for mark, unpacked in _PACKED:
        if beginning.startswith(mark):
            file.close()
            file = cast(IO[bytes], unpacked(path, "rb"))
            beginning = file.read(8)
            break
    file.seek(0)
    return file, next((name for mark, name in _MARKS if beginning.startswith(mark)), "utf-8")


def _in_text(path: Path, people: People) -> bool:
    file, encoding = _opened(path)
    try:
        with file:
            return _in_stream(io.TextIOWrapper(file, encoding=encoding), people)
    except UnicodeDecodeError as error:
        if _in_foreign_text(path, people):
            return True
        raise Unread("is no text in UTF-8") from error


def _in_foreign_text(path: Path, people: People) -> bool:
    """Whether a file names the people if it is taken for a text of Western Europe."""
    file, _ = _opened(path)
    with file:
        return people.named_in(file.read(_MOST_FOREIGN).decode("latin-1").replace("\0", ""))


def _in_stream(stream: io.TextIOWrapper, people: People) -> bool:
    overlap = max(2000, _ESCAPED * people.longest)
    tail, binary = "", False
    while chunk := stream.read(CHUNK):
        window = tail + chunk
        if people.named_in(window):
            return True
        if "\0" in chunk:
            binary = True
            if people.named_in(window.replace("\0", "")):
                return True
        tail = _whole_words(window[-overlap:]) if len(window) > overlap else window
    if binary:
        raise Unread("is no text")
    return False


def _whole_words(tail: str) -> str:
    """The end of a text, without the half of a word that it begins with, so that “Joann Lee” is not taken for “Ann Lee”."""
    first = next((place for place, letter in enumerate(tail[: len(tail) // 2]) if letter.isspace()), 0)
    return tail[first:]


# --- rows -------------------------------------------------------------------------------------------------------------


def _in_rows_of_text(path: Path, people: People) -> bool:
    """Whether a table or JSON lines have a row about somebody whose number or short name is not looked for in texts."""
    kind = next(
        (suffix.lower() for suffix in reversed(path.suffixes) if suffix.lower() in (".csv", ".tsv", ".jsonl", ".json")), ""
    )
    if not kind:
        return False
    file, encoding = _opened(path)
    with file, io.TextIOWrapper(file, encoding=encoding, newline="") as text:
        try:
            return any(_is_about(row, path.parent.name, people) for row in _rows_of_text(text, kind))
        except (ValueError, csv.Error):  # not what its name says: it was searched as a text
            return False


def _rows_of_text(text: io.TextIOWrapper, kind: str) -> Iterator[Mapping[str, Any]]:
    if kind in (".csv", ".tsv"):
        yield from csv.DictReader(text, delimiter="," if kind == ".csv" else "\t")
    elif kind == ".jsonl":
        yield from (row for line in text if line.strip() and isinstance(row := json.loads(line), dict))
    else:
        value = json.load(text)
        yield from (row for row in (value if isinstance(value, list) else [value]) if isinstance(row, dict))


def _is_about(row: Mapping[str, Any], folder: str, people: People) -> bool:
    known = [str(row[key]) for key in _NAMING if row.get(key)]
    known += [subject(folder, str(row["ID"]))] if row.get("ID") else []
    return any(map(people.has, (*known, *subjects_in_id(str(row.get("id") or "")))))


def _in_parquet(path: Path, people: People) -> bool:
    with pq.ParquetFile(path) as file:
        if _in_schema(file.schema_arrow, people):
            return True
        columns = _text_columns(file.schema_arrow)
        return any(_in_batch(batch, path, people) for batch in file.iter_batches(batch_size=_ROWS, columns=columns))


def _in_arrow(path: Path, people: People) -> bool:
    """An Arrow file or stream, as `datasets` keeps them."""
    with pa.memory_map(str(path)) as source:
        try:
            file = pa.ipc.open_file(source)
            batches: Iterator[pa.RecordBatch] = (file.get_batch(number) for number in range(file.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            file = pa.ipc.open_stream(source)
            batches = iter(file)
        if _in_schema(file.schema, people):
            return True
        columns = _text_columns(file.schema)
        for batch in batches:
            chosen = batch.select(columns)
            if any(_in_batch(chosen.slice(first, _ROWS), path, people) for first in range(0, batch.num_rows, _ROWS)):
                return True
    return False


def _in_schema(schema: pa.Schema, people: People) -> bool:
    """Whether the names of columns or what is noted beside them, as the names of classes, hold the people."""
    noted = [text for pair in (schema.metadata or {}).items() for text in pair]
    return any(people.named_in(each.decode("utf-8", "ignore")) for each in noted) or any(map(people.named_in, schema.names))


def _text_columns(schema: pa.Schema) -> list[str]:
    """The columns that may hold texts.

    Raises:
        Unread: none does.
    """
    columns = [field.name for field in schema if _may_hold_text(field.type)]
    if not columns:
        raise Unread("a table without texts")
    return columns


def _may_hold_text(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        return _may_hold_text(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _may_hold_text(kind.storage_type)
    if types.is_nested(kind):
        return any(_may_hold_text(kind.field(place).type) for place in range(kind.num_fields))
    texts_or_bytes = (types.is_string, types.is_large_string, types.is_string_view)
    return any(test(kind) for test in (*texts_or_bytes, types.is_binary, types.is_large_binary, types.is_binary_view)) or (
        types.is_integer(kind)  # the number of a person
    )


def _in_batch(batch: pa.RecordBatch, path: Path, people: People) -> bool:
    """Whether rows hold the people. Pictures are told by the texts beside them.

    Raises:
        Unread: there are none, or there are bytes of another kind.
    """
    for row in batch.to_pylist():
        read = {key: _decoded(value) for key, value in row.items()}
        if _is_about(read, path.parent.name, people) or any(map(people.named_in, texts(read))):
            return True
        if _has_picture(row) and not any(isinstance(value, str) and value for value in read.values()):
            raise Unread("a table of pictures without texts")
    return False


def _has_picture(value: Any) -> bool:
    if isinstance(value, bytes):
        return value.startswith(_PICTURE_BEGINNINGS)
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(map(_has_picture, inner))


def _decoded(value: Any) -> Any:
    """A value of Arrow with bytes as texts and without pictures; a map's entries are pairs."""
    if isinstance(value, bytes):
        if value.startswith(_PICTURE_BEGINNINGS):
            return None
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Unread("a table with bytes that are neither texts nor pictures") from error
    if isinstance(value, Mapping):
        return {key: _decoded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_decoded(inner) for inner in value]
    return value
