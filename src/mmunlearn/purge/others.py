"""Files that no run wrote: data sets and texts are looked into and listed, never changed."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmunlearn.benchmarks.mllmu_rows import subject
from mmunlearn.benchmarks.people_files import MANIFEST
from mmunlearn.purge.people import People
from mmunlearn.purge.scan import Rest, Scan

TEXTS = (".csv", ".tsv", ".jsonl", ".json", ".txt", ".md", ".tex", ".html", ".yaml", ".yml", ".log", ".out", ".err")
"""Endings of files that are read as text."""
MOST_BYTES = 200 * 1024 * 1024
"""Larger texts are read up to here."""
_YOURS = "Not written by a run: change or delete it yourself."


def others_rest(found: Scan, people: People) -> list[Rest]:
    """Data sets and texts below the folders that hold the people; a data set of many files is one entry."""
    rest = []
    data_sets: Counter[Path] = Counter()
    for path in found.others:
        try:
            if path.suffix == ".parquet" and _in_parquet(path, people):
                data_sets[_data_set(path)] += 1
            elif path.suffix.lower() in TEXTS and _in_text(path, people):
                rest.append(Rest(path=path, why="names them", remedy=_YOURS))
        except (OSError, pa.ArrowException) as error:
            rest.append(Rest(path=path, why=f"cannot be read ({str(error).splitlines()[0]})", remedy="Look there."))
    rest += [
        Rest(path=path, why=f"a data set: {count} of its files hold them", remedy=_YOURS) for path, count in data_sets.items()
    ]
    return rest


def _data_set(path: Path) -> Path:
    """The folder that holds all files of a data set."""
    return next((folder for folder in path.parents if (folder / MANIFEST).is_file()), path.parent)


def _in_text(path: Path, people: People) -> bool:
    with path.open("rb") as file:
        return people.named_in(file.read(MOST_BYTES).decode("utf-8", "ignore"))


def _in_parquet(path: Path, people: People) -> bool:
    """Whether a file's identifiers or texts hold the people; pictures are not looked at."""
    with pq.ParquetFile(path) as file:
        columns = [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]
        for batch in file.iter_batches(columns=columns):
            if any(_in_row(row, path.parent.name, people) for row in batch.to_pylist()):
                return True
    return False


def _in_row(row: dict[str, Any], folder: str, people: People) -> bool:
    known = [subject(folder, str(row["ID"]))] if row.get("ID") else []
    known += [str(row["name"])] if row.get("name") else []
    return any(map(people.has, known)) or any(people.named_in(text) for text in row.values() if text)
