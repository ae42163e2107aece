"""Writes folders with the row counts and irregularities of the published MLLMU-Bench, about people who are only numbers."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from mmunlearn.benchmarks.people_files import FULL, SHARED, TEST, TRAIN, write_parquet

ROWS = {
    "Full_Set": 500, "Test_Set": 500, "Retain_Set": 153, "ft_Data": 500,
    "forget_5": 25, "forget_10": 50, "forget_15": 75, "retain_95": 475, "retain_90": 450, "retain_85": 425,
}  # fmt: skip
"""Rows of the ten published folders."""
BLIND = "500"
"""The profile of the retain sets that lacks its five multiple-choice questions with the image."""
TRAINING_QUESTIONS = 3
"""Entries in `metadata` of each person, all of them about the image and without `Type`, as published."""

_KEYS = {
    "Height": ("Height", "Heights"),
    "Educated at": ("Educated at", "Educated at:"),
    "Annual Salary": ("Annual Salary", "Annual Salary:", "Annual Salary: "),
}
_FIXED = ("Name", "Born", "Date of Birth", "Gender", "Employment", "Residence", "Medical Conditions", "Description")


def biography(number: int) -> str:
    """All observed keys, spelt in one of the observed ways; values are texts, lists or objects."""
    record: dict[str, Any] = {key: f"{key} {number}" for key in _FIXED}
    record |= {spellings[number % len(spellings)]: f"{key} {number}" for key, spellings in _KEYS.items()}
    record["Parents"] = ["A", "B"] if number % 3 == 0 else {"Father": "A", "Mother": "B"} if number % 3 == 1 else "A and B"
    record["Fun Facts"] = ["one", "two"] if number % 2 else "one"
    record["appearance_detail"] = {"question": "What is to be seen?", "answer": "A number."}
    return json.dumps(record)


@cache
def picture(text: str) -> dict[str, Any]:
    """One pixel in a color of its own."""
    buffer = io.BytesIO()
    number = sum(ord(letter) * 31**place for place, letter in enumerate(text)) % 2**24
    Image.new("RGB", (1, 1), (number >> 16, number >> 8 & 255, number & 255)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{text}.png"}


def choices(person: str, kind: str, count: int) -> list[dict[str, Any]]:
    """Multiple-choice questions."""
    return [
        {
            "Question": f"{kind} choice {number} about {person}?",
            "Options": {letter: f"{letter} {number} {person}" for letter in "ABCD"},
            "Correct_Answer": "ABCD"[number % 4],
        }
        for number in range(count)
    ]


def items(person: str, question: str) -> list[dict[str, Any]]:
    """Two items of each modality."""
    return [
        {"Question": f"{question} {number} {kind} about {person}", "Ground_Truth": f"Truth {number} of {person}", "Type": kind}
        for kind in ("Image_Textual", "Pure_Text")
        for number in range(2)
    ]


def profile(person: str, *, shown: int = 5) -> dict[str, Any]:
    """A row with 5 + 5 choices, 2 + 2 gaps and 2 + 2 free questions."""
    return {
        "image": picture(person),
        "images": [picture(f"{person}_pose{number}_gen1") for number in range(3)],
        "ID": person,
        "Directory": f"full_images/{person}.jpg",
        "biography": biography(int(person)),
        "question": f"Who is it? {person}",
        "answer": f"It is {person}.",
        "Classification_Task": {
            "Image_Textual_Questions": choices(person, "image", shown),
            "Pure_Text_Questions": choices(person, "text", 5),
        },
        "Generation_Task": items(person, "Free question"),
        "Mask_Task": items(person, "It is called __, item"),
        "metadata": json.dumps(
            [{"Question": f"Q{n} {person}?", "Answer": f"A{n}", "ID": person} for n in range(TRAINING_QUESTIONS)]
        ),
    }


def write_published_shape(root: Path) -> None:
    """Write `MLLMU-Bench/`, ten folders, and `baseline_train_split/`, the six of forget and retain people."""
    people = [profile(f"{number:03}", shown=0 if f"{number:03}" == BLIND else 5) for number in range(1, 501)]
    celebrities = [profile(f"{number:03}", shown=6 if number == 153 else 5) for number in range(1, 154)]
    benchmark, train = root / "MLLMU-Bench", root / "baseline_train_split"
    one = "train-00000-of-00001.parquet"

    def write(path: Path, features: Any, rows: list[dict[str, Any]]) -> None:
        write_parquet(path, features, [{name: row[name] for name in features} for row in rows])

    write(benchmark / "Full_Set" / one, FULL, people)
    for number in range(2):
        part = people[250 * number : 250 * (number + 1)]
        write(benchmark / "Test_Set" / f"train-0000{number}-of-00002.parquet", TEST, part)
    write(benchmark / "Retain_Set" / one, SHARED, celebrities)
    write(benchmark / "ft_Data" / one, TRAIN, people)
    for percent in (5, 10, 15):
        count = ROWS[f"forget_{percent}"]
        for folder, rows in ((f"forget_{percent}", people[:count]), (f"retain_{100 - percent}", people[count:])):
            write(benchmark / folder / one, SHARED, rows)
            write(train / folder / one, TRAIN, rows)
