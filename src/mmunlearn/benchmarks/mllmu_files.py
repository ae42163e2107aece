"""Finds and reads the Parquet folders of a published data set, on disk or on the hub, and explains what is wrong with them."""

import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from PIL import Image

from mmunlearn.data.example import UNDECODABLE, LazyImage, check_picture, undecodable
from mmunlearn.errors import DataError, did_you_mean

Row = dict[str, Any]

# The root of the errors of whichever HTTP library the installed huggingface_hub uses; it has changed twice.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]

_ROWS_AT_ONCE = 32  # keeps the second copy that Arrow makes of the images small


@dataclass(frozen=True)
class Source:
    """One repository: a folder on disk or on the hub."""

    setting: str
    """The name of the setting that points elsewhere, for messages."""
    root: str
    """What the user set; empty: search."""
    default: Path
    """Where a copy is looked for when nothing was set."""
    repository: str
    repository_type: str
    offline: str
    """What to do without network, for messages."""

    def local(self) -> Path | None:
        """The folder on disk, or None when the hub has to be asked.

        Raises:
            DataError: the user named a folder that does not exist or cannot be looked at.
        """
        if not self.root:
            return self.default if self.default.is_dir() else None
        remedy = f"Set data.{self.setting} to a copy of {self.repository}, or leave it empty."
        try:
            folder = Path(self.root).expanduser()
            if folder.is_dir():
                return folder
            what = "not a folder but a file" if folder.exists() else "no such folder"
        except (OSError, RuntimeError) as error:  # a name that no folder can have, a parent that may not be entered, ~nobody
            raise DataError(f"{self.root}: cannot be looked at ({error}). {remedy}") from error
        raise DataError(f"{folder}: {what}. {remedy}")

    def find(self, name: str) -> tuple[Path, ...]:
        """The Parquet files of one folder; empty if this source does not have it.

        Raises:
            DataError: the hub cannot be reached and nothing is cached, or files of the folder are missing.
        """
        local = self.local()
        if local is not None:
            return parquet_files(local / name)
        try:
            cached = Path(self._download(name, local_files_only=True))
            if files := parquet_files(cached / name):
                return files
        except (LocalEntryNotFoundError, ValueError, DataError):
            pass  # not cached, or only in part: fetch it; a malformed repository id is explained there
        try:
            return parquet_files(Path(self._download(name, local_files_only=False)) / name)
        except (HfHubHTTPError, LocalEntryNotFoundError, _HTTP_ERROR, OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise DataError(
                f"{self.repository}: {name} is neither on this machine nor can it be downloaded ({reason}). "
                f"To run without network, {self.offline}."
            ) from error

    def _download(self, name: str, *, local_files_only: bool) -> str:
        return snapshot_download(
            self.repository,
            repo_type=self.repository_type,
            allow_patterns=[f"{name}/*"],
            local_files_only=local_files_only,
        )

    def missing(self, name: str) -> DataError:
        """The error for a folder that this source should have."""
        place = self.local()
        if place is None:
            return DataError(f"{self.repository}: has no folder {name!r}. Check data.forget_ratio and data.{self.setting}.")
        siblings = [folder.name for folder in place.iterdir() if folder.is_dir()]
        hint = did_you_mean(name, siblings) if siblings else "It has no folders at all."
        return DataError(
            f"{place / name}: no Parquet files there. {hint} "
            f"Check data.forget_ratio, or set data.{self.setting} to a complete copy of {self.repository}."
        )


def parquet_files(folder: Path) -> tuple[Path, ...]:
    """The Parquet files of a folder in order; empty if there are none or no folder.

    Raises:
        DataError: the names say that there are more files than there are, or it is not a folder that can be read.
    """
    if folder.is_symlink() and not folder.exists():
        raise DataError(f"{folder}: a link that leads nowhere. Download the folder again or put a copy in its place.")
    if folder.is_file():
        raise DataError(f"{folder}: not a folder but a file. Download the folder again.")
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"{folder}: may not be read. Correct its permissions.")
    # Names that begin with a dot are other systems' notes about a file of that name.
    files = tuple(sorted(file for file in folder.glob("*.parquet") if not file.name.startswith(".")))
    for file in files:
        total = re.search(r"-of-(\d+)\.parquet$", file.name)
        if total and int(total[1]) != len(files):
            raise DataError(f"{folder}: has {len(files)} of {int(total[1])} Parquet files. Download the folder again.")
    return files


def columns_of(files: Sequence[Path]) -> frozenset[str]:
    """The columns of the first file.

    Raises:
        DataError: it is not a Parquet file.
    """
    return frozenset(_open(files[0]).schema_arrow.names)


def read_rows(
    files: Sequence[Path],
    required: Sequence[str],
    optional: Sequence[str] = (),
    *,
    settings: str = "data.root and data.train_root",
) -> Iterator[tuple[str, Row]]:
    """Every row of some columns, with a description of where it stands: file and number, counted from 0.

    Args:
        files: of one folder.
        required: columns.
        optional: columns read where they exist.
        settings: those that name another folder, for messages.

    Raises:
        DataError: a file is damaged or empty of rows, a text has a character that no text has, or a required column is
            missing or there twice.
    """
    count = 0
    for path in files:
        file = _open(path)
        known = file.schema_arrow.names
        for name in required:
            if name not in known:
                raise DataError(
                    f"{path}: the column {name!r} is missing. {did_you_mean(name, known)} "
                    f"Is this folder of the right repository? See {settings}."
                )
        wanted = [*required, *(name for name in optional if name in known)]
        for name in wanted:
            if known.count(name) > 1:
                raise DataError(f"{path}: the column {name!r} is there twice. Remove one of them or download the file again.")
        for number, row in enumerate(_rows(path, file, wanted)):
            count += 1
            where = f"{path}, row {number}"
            for name, cell in row.items():
                if isinstance(cell, str) and (bad := unwritable(cell)):
                    raise DataError(f"{where}: {name!r} holds {bad}, which no text has. Restore the row from its source.")
            yield where, row
    if not count:
        raise DataError(f"{files[0].parent}: has no rows. Download the folder again or point data.root to another copy.")


def unwritable(text: str) -> str:
    """The first character that cannot be given to a tokenizer or written to a file, such as `U+0000`; empty if all can.

    These are NUL and halves of surrogate pairs, which an escape in JSON can leave behind.
    """
    found = re.search("[\0\ud800-\udfff]", text)
    return f"U+{ord(found[0]):04X}" if found else ""


def _open(path: Path) -> pq.ParquetFile:
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path}: a link that leads nowhere. Download the file (git annex get, git lfs pull) or copy it there.")
    if path.is_file() and not os.access(path, os.R_OK):
        raise DataError(f"{path}: may not be read. Correct its permissions.")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _rows(path: Path, file: pq.ParquetFile, columns: list[str]) -> Iterator[Row]:
    try:
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
            yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: one of the columns {', '.join(columns)} has a text that is not UTF-8 ({error.reason}). Download the file "
            "again, or write it with texts in UTF-8."
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error).strip().split("\n")[0]
    return DataError(
        f"{path}: not a complete Parquet file ({reason}). It was probably cut off while being downloaded or is only a "
        "Git LFS pointer: download it again."
    )


def encoded_image(cell: Any) -> bytes:
    """The encoded picture in a cell of an image column, a structure or the bytes themselves; empty if there is none."""
    encoded = cell.get("bytes") if isinstance(cell, dict) else cell
    return encoded if isinstance(encoded, bytes) else b""


def image_key(encoded: bytes) -> str:
    """Identifies a picture by its encoded bytes."""
    return hashlib.sha256(encoded).hexdigest()[:20]


class ImageCache:
    """Keeps the encoded bytes of each picture once, however many folders and questions show it."""

    def __init__(self) -> None:
        self._images: dict[str, LazyImage] = {}

    def add(self, cell: Any, where: str) -> LazyImage:
        """Take a cell of an image column.

        Args:
            cell: a structure with `bytes`, as the hub stores images, or the bytes.
            where: file and row, for messages.

        Raises:
            DataError: there are no bytes, or they do not begin like a picture.
        """
        encoded = encoded_image(cell)
        if not encoded:
            raise _no_picture(cell, where)
        key = image_key(encoded)
        if key not in self._images:
            _check_header(encoded, where)
            # `bytes` of bytes is the same object; a partial of it can be sent to worker processes.
            self._images[key] = LazyImage(key=key, where=where, read=partial(bytes, encoded))
        return self._images[key]


def _check_header(encoded: bytes, where: str) -> None:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            check_picture(image)
    except UNDECODABLE as error:
        raise undecodable(where, error) from error


def _no_picture(cell: Any, where: str) -> DataError:
    """The error for a cell without a picture; a path is named, but never opened."""
    path = cell.get("path") if isinstance(cell, dict) else cell
    if isinstance(path, str) and path:
        return DataError(
            f"{where}: the image is only a path ({path[:100]!r}), the picture itself is not in the file. Save the data set "
            "with its pictures embedded, or download it again."
        )
    return DataError(f"{where}: the image is missing. Restore the file from its source or remove the row.")
