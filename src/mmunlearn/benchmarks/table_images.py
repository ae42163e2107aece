"""The portraits that a table names: looked for below one folder only, checked once, read again when they are needed."""

import io
import os
from functools import partial
from pathlib import Path, PureWindowsPath

from PIL import Image, ImageOps

from mmunlearn.benchmarks.mllmu_files import image_key
from mmunlearn.benchmarks.table_rows import Findings
from mmunlearn.data.example import LazyImage, check_picture
from mmunlearn.errors import did_you_mean

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What a portrait may be; others are handed to programs outside of Python by the image library, or cannot be read."""

_ORIENTATION = 0x0112  # the Exif tag in which cameras say how a picture was held


class Portraits:
    """The pictures of one table, each file checked once, however many rows name it."""

    def __init__(self, root: Path, findings: Findings) -> None:
        """Remember where to look.

        Args:
            root: no file outside of this folder is ever opened.
            findings: takes the problems.
        """
        self._root = Path(os.path.realpath(root))
        self._findings = findings
        self._known: dict[str, LazyImage | None] = {}

    def find(self, name: str, where: str) -> LazyImage | None:
        """The picture of a row; None where it names none, or one with a problem, which is noted for the first such row.

        Args:
            name: as it stands in the table; may be empty.
            where: file and row, for messages.
        """
        if not name:
            return None
        if name not in self._known:
            self._known[name] = self._checked(name, where)
        return self._known[name]

    def _checked(self, name: str, where: str) -> LazyImage | None:
        try:
            file = Path(os.path.realpath(self._root / name))
            outside = Path(name).is_absolute() or PureWindowsPath(name).is_absolute() or not file.is_relative_to(self._root)
            if outside:
                problem = f"the image {name!r} is not inside {self._root}. Copy it there, or set data.root to another folder."
                self._findings.add(where, problem)
                return None
            if not file.is_file():
                self._findings.add(where, f"there is no image {name!r} in {self._root}. {self._hint(name, file)}")
                return None
            encoded = file.read_bytes()
        except (OSError, ValueError) as error:  # a name that no file can have, or one that may not be read
            self._findings.add(where, f"the image {name!r} cannot be read ({error}). Correct the name or the permissions.")
            return None
        try:
            turned = _decoded_once(encoded)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            self._findings.add(
                where,
                f"the image {name!r} cannot be decoded as {', '.join(FORMATS[:-1])} or {FORMATS[-1]} "
                f"({_reason(error)}). Convert or replace it.",
            )
            return None
        key = image_key(encoded)
        # Turned pixels are other pixels than those of the file as it is.
        return LazyImage(
            key=f"{key}-upright" if turned else key,
            where=f"{where}, image {name}",
            read=partial(read_unchanged, file, key),
        )

    def _hint(self, name: str, file: Path) -> str:
        if "\\" in name:
            return "Write / between folders, not \\."
        siblings = [each.name for each in file.parent.iterdir()] if file.parent.is_dir() else []
        hint = did_you_mean(file.name, siblings)
        return hint if hint.startswith("Did you mean") else "Correct the name, add the file, or leave the cell empty."


def read_unchanged(file: Path, key: str) -> bytes:
    """The bytes of a picture, upright.

    Args:
        file: where it is.
        key: identifies the bytes that it had when the table was read.

    Raises:
        OSError: the file is gone, or holds something else than it did.
    """
    encoded = file.read_bytes()
    if image_key(encoded) != key:
        raise OSError("the file was changed after the table was read")
    with Image.open(io.BytesIO(encoded)) as image:
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return encoded
        upright = io.BytesIO()
        ImageOps.exif_transpose(image).convert("RGB").save(upright, "PNG")
        return upright.getvalue()


def _decoded_once(encoded: bytes) -> bool:
    """Decode a picture to the end, JPEG in its smallest size; whether it has to be turned to stand upright."""
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        check_picture(image)
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        image.draft("RGB", (64, 64))
        image.load()
        return bool(turned)


def _reason(error: Exception) -> str:
    """Without the address of the buffer in memory, which Pillow names."""
    return "not a picture" if "cannot identify" in str(error) else str(error).split("\n")[0]
