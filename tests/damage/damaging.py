"""Good folders in three layouts, and what a case needs to spoil a copy of one in a single place."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mmunlearn.benchmarks.base import Benchmark
from mmunlearn.benchmarks.clear import CLEAR
from mmunlearn.benchmarks.mllmu import MLLMUBench
from mmunlearn.benchmarks.people_clear_files import write_people_clear
from mmunlearn.benchmarks.people_files import write_people
from mmunlearn.benchmarks.table import Table
from mmunlearn.data.example import Example

FILE = "train-00000-of-00001.parquet"
MLLMU_SIZES = {"num_people": 10, "num_public_figures": 2, "num_holdout": 1, "num_general_faces": 2, "image_size": 16}
CLEAR_SIZES = {"num_people": 10, "num_public_figures": 4, "num_general_faces": 2, "image_size": 16}
OWN_TABLE = """\
subject,image,kind,question,answer,options,reworded
Ada,ada.png,choice,What does she do?,baker,judge|baker|tailor,
Ada,,cloze,Ada was born in ____.,1971,,
Ada,ada.png,,Who is it?,Ada,,
Bo,bo.png,choice,What does he do?,judge,judge|baker|tailor,
Bo,,,Who is Bo?,"A judge, he says.",,
"""

Rows = list[dict[str, Any]]
Damage = Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to be damaged, and what must become of it.

    Exactly one of `refused` and `tolerated` says what is expected.
    """

    name: str
    layout: str
    """mllmu, clear or table: which good folder is spoilt."""
    damage: Damage
    """Spoils the copy below a path."""
    refused: tuple[str, ...] = ()
    """Words of the message: file, row or ID, what is wrong. A remedy is demanded of every message."""
    tolerated: bool = False
    counted: str = ""
    """If tolerated: the beginning of the flaw in `problems()`; empty: nothing to be counted."""
    check: Callable[[Benchmark], bool] | None = None
    """If tolerated: what must hold of the benchmark."""


def write_good(root: Path) -> None:
    """Write the three good folders."""
    write_people(root / "mllmu", seed=0, **MLLMU_SIZES)
    write_people_clear(root / "clear", seed=0, **CLEAR_SIZES)
    (root / "table").mkdir(parents=True, exist_ok=True)
    (root / "table/people.csv").write_text(OWN_TABLE, encoding="utf-8")
    for name, color in (("ada", (200, 10, 10)), ("bo", (10, 10, 200))):
        Image.new("RGB", (8, 8), color).save(root / f"table/{name}.png")


def copy_good(good: Path, copy: Path) -> Path:
    """A copy by hard links; whoever changes a file of it writes a new one, see `overwrite`."""
    return shutil.copytree(good, copy, copy_function=os.link)


def open_damaged(layout: str, root: Path) -> Benchmark:
    """The benchmark that reads a folder of a layout; one person in ten is forgotten."""
    if layout == "mllmu":
        return MLLMUBench(root=str(root / "MLLMU-Bench"), train_root=str(root / "baseline_train_split"), forget_ratio="15")
    if layout == "clear":
        return CLEAR(root=str(root), forget_ratio="10")
    tables = sorted(path.name for path in root.glob("people.*"))
    return Table(root=str(root), table=tables[0] if tables else "people.csv", forget=("Ada",))


def read_all(benchmark: Benchmark) -> list[Example]:
    """Everything that a training and an evaluation read, with every picture opened once."""
    splits = benchmark.splits()
    examples = [*splits.forget, *splits.retain, *splits.full]
    examples += [example for task in benchmark.tasks() for example in task.examples]
    for image in {example.image.key: example.image for example in examples if example.image is not None}.values():
        assert image.open().mode == "RGB"
    return examples


# --- ways to change a file ---------------------------------------------------------------------------------------------


def overwrite(path: Path, content: bytes) -> None:
    """Put other bytes in a file's place, without touching what it was linked to."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def change_bytes(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """Damage a file as a whole."""
    return lambda root: overwrite(root / name, change((root / name).read_bytes()))


def change_table(name: str, change: Callable[[pa.Table], pa.Table]) -> Damage:
    """Damage columns of a Parquet file."""

    def damage(root: Path) -> None:
        table = change(pq.read_table(root / name))
        (root / name).unlink()
        pq.write_table(table, root / name)

    return damage


def change_rows(name: str, change: Callable[[Rows], object]) -> Damage:
    """Damage rows of a Parquet file, the types of its columns kept; `change` works in place."""

    def changed(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        change(rows)
        return pa.Table.from_pylist(rows, schema=table.schema)

    return change_table(name, changed)


def retype(column: str, change: Callable[[list[Any]], Sequence[Any] | pa.Array]) -> Callable[[pa.Table], pa.Table]:
    """Give a column other values of whatever type they have."""

    def changed(table: pa.Table) -> pa.Table:
        values = change(table[column].to_pylist())
        array = values if isinstance(values, pa.Array) else pa.array(values)
        bare = table.replace_schema_metadata(None)
        return bare.set_column(bare.schema.get_field_index(column), column, array)

    return changed


def all_of(*damages: Damage) -> Damage:
    """Several damages of one copy."""
    return lambda root: [damage(root) for damage in damages]
