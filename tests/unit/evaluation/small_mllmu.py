"""A few people in MLLMU-Bench's layout, written out by hand, so that prompts about them can be compared word by word."""

import io
from pathlib import Path

from PIL import Image

from mmunlearn.benchmarks.mllmu import MLLMUBench
from mmunlearn.benchmarks.people_files import FULL, TEST, write_parquet

FORGET = {"001": "Ada Quill", "002": "Bo Marsh", "003": "Cy Vane", "004": "Di Holt", "005": "Ed Frost"}
RETAIN = {"011": "Flo Reed", "012": "Gus Hale", "013": "Hal Moss", "014": "Ivy Dunn"}
REAL = {"001": "Jo Star", "002": "Kit Fame", "003": "Lou Glow"}
TOWNS = ("Oslo", "Lima", "Bern", "Riga")
JOBS = ("baker", "pilot", "nurse", "judge")
"""Jobs and towns of a person follow from the number of the id."""
ALL = {"forget": FORGET, "test": FORGET, "retain": RETAIN, "real": REAL}


def picture(shade: int) -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (shade % 256, shade * 7 % 256, shade * 31 % 256)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def choice(question: str, options: tuple[str, ...], right: str) -> dict:
    return {
        "Question": question,
        "Options": dict(zip("ABCD", options, strict=True)),
        "Correct_Answer": "ABCD"[options.index(right)],
    }


def item(kind: str, question: str, answer: str) -> dict:
    return {"Type": {"image": "Image_Textual", "text": "Pure_Text"}[kind], "Question": question, "Ground_Truth": answer}


def row(person: str, name: str, shade: int) -> dict:
    number = int(person)
    town, job = TOWNS[number % 4], JOBS[number // 2 % 4]
    who = {"image": "this person", "text": name}
    return {
        "image": picture(shade),
        "ID": person,
        "Directory": "",
        "biography": "{}",
        "question": "Who is it?",
        "answer": name,
        "Classification_Task": {
            f"{column}_Questions": [
                choice(f"Where does {who[kind]} live?", TOWNS, town),
                choice(f"What is the job of {who[kind]}?", JOBS, job),
            ]
            for kind, column in (("image", "Image_Textual"), ("text", "Pure_Text"))
        },
        "Generation_Task": [item(kind, f"What is {who[kind]} like?", f"{name} is a {job}.") for kind in who],
        "Mask_Task": [
            question
            for kind in who
            for question in (
                item(kind, f"{who[kind]} lives in __.", town),
                item(kind, f"{who[kind]} is a ____ by trade.", job),
            )
        ],
    }


def write_small(root: Path) -> Path:
    """Write the folders of the benchmark; of each person the shade of the portrait tells who and where it is."""
    for folder, people, shift in (("forget_5", FORGET, 0), ("retain_95", RETAIN, 0), ("Retain_Set", REAL, 100)):
        rows = [row(person, name, int(person) + shift) for person, name in people.items()]
        write_parquet(root / folder / "train-00000-of-00001.parquet", FULL, rows)
    tests = [
        {**{key: value for key, value in row(person, name, 0).items() if key not in ("image", "Directory")},
         "images": [picture(int(person) + 200)]}
        for person, name in FORGET.items()
    ]  # fmt: skip
    write_parquet(root / "Test_Set" / "train-00000-of-00001.parquet", TEST, tests)
    return root


def open_small(root: Path, **settings) -> MLLMUBench:
    """The benchmark, opened anew."""
    return MLLMUBench(**{"root": str(root), "train_root": str(root), "forget_ratio": "5", **settings})
