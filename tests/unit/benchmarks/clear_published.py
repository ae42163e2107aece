"""CLEAR's 21 folders with as many rows and such columns as were published; what stands in the rows is made up."""

import io
from functools import cache

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NAMED = ("image", "caption", "name")
TOFU = ("image", "caption", "question", "answer")
PERTURBED = (*NAMED, "paraphrased_caption", "perturbed_captions", "perturbed_names")
REAL = ("image", "question", "answer", "options")
ROWS = {
    "data": (NAMED, 3768), "full": (NAMED, 3768), "full+tofu": (TOFU, 7768),
    "forget01": (NAMED, 35), "forget05": (NAMED, 188), "forget10": (NAMED, 379),
    "retain99": (NAMED[:2], 3735), "retain95": (NAMED, 3582), "retain90": (NAMED, 3391),
    "forget01+tofu": (TOFU, 75), "forget05+tofu": (TOFU, 388), "forget10+tofu": (TOFU, 779),
    "retain99+tofu": (TOFU, 7695), "retain95+tofu": (TOFU, 7382), "retain90+tofu": (TOFU, 6991),
    "forget01_perturbed": (PERTURBED, 35), "forget05_perturbed": (PERTURBED, 188), "forget10_perturbed": (PERTURBED, 378),
    "retain_perturbed": (PERTURBED, 395), "real_faces": (REAL, 151), "real_world": (REAL, 367),
}  # fmt: skip
"""Columns and rows of every published folder."""
FORGOTTEN = {"01": 2, "05": 10, "10": 20}
"""Of the 200 authors; the last ones, as in TOFU."""
# Pictures of each author, the first to the last: 3,391 of those retained under 10 %, then 191, 153 and 35.
PICTURES = [*[19] * 151, *[18] * 29, *[19] * 9, 20, *[19] * 7, 20, 18, 17]
_LISTS = {"perturbed_captions", "perturbed_names", "options"}
_FIRST = ("Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida", "Jo")
_LAST = ("Ash", "Birch", "Cole", "Dale", "Elm", "Frost", "Glen", "Hale", "Ives", "Judd",
         "Kerr", "Lane", "Marsh", "North", "Oak", "Pine", "Quill", "Reed", "Stone", "Thorn")  # fmt: skip


@cache
def _picture():
    found = io.BytesIO()
    Image.new("RGB", (1, 1)).save(found, "PNG")
    return found.getvalue()


def picture(*words):
    """A pixel with other bytes behind its end: another picture for the reader, at no cost."""
    return {"bytes": _picture() + "/".join(map(str, words)).encode(), "path": None}


def authors():
    """200 names."""
    return [f"{first} {last}" for last in _LAST for first in _FIRST]


def shown(people):
    """All pictures of some people."""
    places = {name: place for place, name in enumerate(authors())}
    return [
        {"image": picture(name, number), "caption": f"{name} stands at window {number}.", "name": name}
        for name in people
        for number in range(PICTURES[places[name]])
    ]


def asked(people):
    """Twenty questions about each of some people."""
    return [
        {"question": f"What is book {number} of {name} about?", "answer": f"Book {number} of {name} is about a river."}
        for name in people
        for number in range(20)
    ]


def perturbed(rows):
    """Pictures with a caption in other words, wrong captions and wrong names."""
    everybody = authors()
    return [
        row | {
            "paraphrased_caption": row["caption"].replace("stands", "is seen"),
            "perturbed_captions": [row["caption"].replace("stands", word) for word in ("sits", "sleeps", "sings")],
            "perturbed_names": [name for name in everybody[:4] if name != row["name"]][:3],
        }
        for row in rows
    ]  # fmt: skip


def folders():
    """The rows of every folder."""
    everybody = authors()
    whole = shown(everybody)[2:]  # the published folder has two pictures less than forget and retain have together
    found = {"data": whole, "full": whole, "full+tofu": whole + asked(everybody)}
    for ratio, count in FORGOTTEN.items():
        retain = f"retain{100 - int(ratio)}"
        for folder, people in ((f"forget{ratio}", everybody[-count:]), (retain, everybody[:-count])):
            found[folder] = shown(people)
            found[f"{folder}+tofu"] = shown(people) + asked(people)
        found[f"forget{ratio}_perturbed"] = perturbed(shown(everybody[-count:])[ratio == "10" :])
    some = [row for name in everybody[:180] for row in shown([name])[:3]]
    found["retain_perturbed"] = perturbed([row for place, row in enumerate(some) if place % 3 < 2 or place < 105])
    for folder, count in (("real_faces", 151), ("real_world", 367)):
        found[folder] = [
            {"image": picture(folder, number), "question": f"Which of these is number {number}?", "answer": f"this {number}",
             "options": ["one", "another"]}
            for number in range(count)
        ]  # fmt: skip
    return found


def write(root):
    """Write all folders below `root`."""
    for folder, rows in folders().items():
        put(root, folder, rows)
    return root


def put(root, folder, rows):
    """Write one folder, with its published columns."""
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    types = {name: pa.list_(pa.string()) if name in _LISTS else pa.string() for name in ROWS[folder][0]} | {"image": image}
    (root / folder).mkdir(parents=True, exist_ok=True)
    cells = [{name: row.get(name) for name in types} for row in rows]
    pq.write_table(pa.Table.from_pylist(cells, schema=pa.schema(types)), root / folder / "train-00000-of-00001.parquet")
