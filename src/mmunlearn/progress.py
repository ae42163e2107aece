"""Progress bars: one place decides how they look, also when several processes draw beneath each other."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_label = ""
_line = 0


def place_bars(label: str, line: int) -> None:
    """In a worker process: what its bars are called and on which line of the terminal they stand."""
    global _label, _line
    _label, _line = label, line


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    smoothing: float = 0.3,
    disable: bool = False,
) -> "tqdm[Any]":
    """A bar that vanishes when it is full; in a log file, where bars cannot move, one line every half minute.

    Args:
        iterable: what to go through; None: the caller counts with `update`.
        desc: what it is about.
        unit: what is counted.
        total: how many there are; without it there is no estimate of the time left.
        initial: how many were done before this bar began; they count for nothing in the speed.
        smoothing: the speed behind the time left: 0 is the mean since the beginning, right where fast and slow stretches
            alternate; 1 is that of the last update.
        disable: draw nothing.
    """
    return tqdm(
        iterable,
        desc=f"{_label}: {desc}" if _label else desc,
        unit=unit,
        total=total,
        initial=initial,
        smoothing=smoothing,
        disable=disable,
        leave=False,
        position=_line,
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 30.0,
    )
