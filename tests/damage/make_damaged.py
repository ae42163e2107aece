"""Writes every damaged folder below a folder, to be looked at or tried out with the command line.

    PYTHONPATH=tests python -m damage.make_damaged OUTPUT

Beside each folder a text says what is expected of a program that reads it.
"""

import re
import sys
from pathlib import Path

from damage.cases_clear import CASES as CLEAR_CASES
from damage.cases_mllmu import CASES as MLLMU_CASES
from damage.cases_table import CASES as TABLE_CASES
from damage.damaging import Case, copy_good, write_good

CASES = (*MLLMU_CASES, *CLEAR_CASES, *TABLE_CASES)


def damaged_folder(case: Case, good: Path, output: Path) -> Path:
    """A spoilt copy of a good folder, named after the case."""
    folder = output / re.sub(r"\W+", "-", case.name)
    copy_good(good / case.layout, folder)
    case.damage(folder)
    return folder


def main(output: Path) -> None:
    """Write the good folders and all damaged ones."""
    write_good(output / "good")
    for case in CASES:
        folder = damaged_folder(case, output / "good", output)
        expected = f"refused: {', '.join(case.refused)}" if case.refused else f"tolerated, counted: {case.counted or 'nothing'}"
        folder.with_name(f"{folder.name}.txt").write_text(f"{case.name}\n{expected}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
