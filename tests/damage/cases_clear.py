"""Damages of a folder in CLEAR's layout."""

import shutil
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from damage.cases_mllmu import SCRIPT, invalid_text, place
from damage.damaged_pictures import BROKEN, SOUND
from damage.damaging import FILE, Case, Damage, all_of, change_bytes, change_rows, change_table, retype

FORGET, RETAIN = f"forget10+tofu/{FILE}", f"retain90+tofu/{FILE}"
ASKED, FACES = f"forget10_perturbed/{FILE}", f"real_faces/{FILE}"


def case(name: str, damage: Damage, *words: str, **expected: Any) -> Case:
    """Refused with these words if there are any, else tolerated."""
    return Case(name=f"clear: {name}", layout="clear", damage=damage, refused=words, tolerated=not words, **expected)


def first(change: Callable[[dict[str, Any]], object], name: str = FORGET) -> Damage:
    """Change the first row of a file."""
    return change_rows(name, lambda rows: change(rows[0]))


def last(change: Callable[[dict[str, Any]], object], name: str = FORGET) -> Damage:
    """Change the last row of a file, which is a question without a picture in a `+tofu` folder."""
    return change_rows(name, lambda rows: change(rows[-1]))


def picture(content: bytes | None) -> Damage:
    """Another picture in the second row."""
    return change_rows(FORGET, lambda rows: rows[1].update(image={"bytes": content, "path": "lost.png"}))


CASES = [
    case("cut off file", change_bytes(FORGET, lambda old: old[: len(old) // 2]), FORGET, "not a complete Parquet file"),
    case("file of zero bytes", change_bytes(ASKED, lambda old: b""), ASKED, "not a complete Parquet file"),
    case("one of two files", lambda root: (root / "full+tofu/train-00001-of-00002.parquet").unlink(), "full+tofu", "1 of 2"),
    case("no rows", change_rows(FORGET, lambda rows: rows.clear()), "forget10+tofu", "no rows"),
    case("folder missing", lambda root: shutil.rmtree(root / "forget10_perturbed"), "forget10_perturbed", "no Parquet files"),
    case("folder is a file", place("real_world", lambda path: path.write_text("x")), "real_world", "not a folder"),
    case("column caption missing", change_table(FORGET, lambda table: table.drop_columns(["caption"])), FORGET, "'caption'"),
    case("unknown columns", change_table(FORGET, lambda table: table.append_column("zodiac", pa.array([1] * len(table))))),
    case(
        "no folder with names",
        lambda root: [shutil.rmtree(root / name) for name in ("data", "full")],
        counted="no folder with names of the people",
    ),
    case("caption null", first(lambda row: row.update(caption=None)), FORGET, "row 0", "'caption'"),
    case("caption of blanks", first(lambda row: row.update(caption=" \n")), FORGET, "row 0", "'caption'"),
    case("empty row", first(lambda row: row.update(caption=None, image=None)), FORGET, "row 0", "nothing"),
    case("answer null", last(lambda row: row.update(answer=None)), FORGET, "row ", "question"),
    case("question empty", last(lambda row: row.update(question="")), FORGET, "row ", "answer"),
    case("picture and question in one row", first(lambda row: row.update(question="Who?", answer="Ada")), FORGET, "row 0"),
    case("no wrong names", first(lambda row: row.update(perturbed_names=[]), ASKED), ASKED, "row 0", "perturbed_names"),
    case("wrong names null", first(lambda row: row.update(perturbed_names=None), ASKED), ASKED, "row 0", "perturbed_names"),
    case("null among wrong names", first(lambda row: row["perturbed_names"].append(None), ASKED), ASKED, "row 0", "perturbed"),
    case("wrong names as text", change_table(FACES, retype("options", lambda old: ["['Ada']"] * len(old))), FACES, "'options'"),
    case(
        "wrong name that is right",
        first(lambda row: row["perturbed_names"].append(row["name"].upper()), ASKED),
        counted="options that repeat each other",
    ),
    case("name null", first(lambda row: row.update(name=None), ASKED), ASKED, "row 0", "'name'"),
    case(
        "faces of other people",
        change_rows(ASKED, lambda rows: [row.update(name="Nobody") for row in rows]),
        "forget10_perturbed",
        "none of the people",
    ),
    case(
        "script in caption, answer and names",
        all_of(
            first(lambda row: row.update(caption=f"{row['caption']} {SCRIPT}")),
            last(lambda row: row.update(answer=SCRIPT)),
            first(lambda row: row["perturbed_names"].append(SCRIPT), ASKED),
        ),
    ),
    case("right to left and combining characters", last(lambda row: row.update(answer="‏שרה e\u0301 \u202eabc"))),
    case("NUL in an answer", last(lambda row: row.update(answer="A\x00da")), FORGET, "row ", "answer", "U+0000"),
    case("text that is not UTF-8", invalid_text("caption", f"forget10/{FILE}"), "UTF-8"),
    case("very long answer", last(lambda row: row.update(answer="word " * 100_000))),
    case(
        "image as a path",
        change_table(FACES, retype("image", lambda old: ["faces/1.png"] * len(old))),
        FACES,
        "row 0",
        "faces/1.png",
        "only a path",
    ),
    case("image path that leads nowhere", picture(None), FORGET, "row 1", "it has caption"),
    case("image null among faces", first(lambda row: row.update(image=None), FACES), FACES, "row 0", "image is missing"),
    *(case(f"image: {name}", picture(content), FORGET, "row 1", "image") for name, content in BROKEN.items()),
    *(case(f"image: {name}", picture(content)) for name, content in SOUND.items()),
]
