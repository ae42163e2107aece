"""Damages of a folder in MLLMU-Bench's layout."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from damage.damaged_pictures import BROKEN, SOUND
from damage.damaging import FILE, Case, Damage, Rows, all_of, change_bytes, change_rows, change_table, overwrite, retype

FORGET, RETAIN = f"MLLMU-Bench/forget_15/{FILE}", f"MLLMU-Bench/retain_85/{FILE}"
FULL, FIGURES = f"MLLMU-Bench/ft_Data/{FILE}", f"MLLMU-Bench/Retain_Set/{FILE}"
TRAINED, KEPT = f"baseline_train_split/forget_15/{FILE}", f"baseline_train_split/retain_85/{FILE}"
TESTS = tuple(f"MLLMU-Bench/Test_Set/train-0000{number}-of-00002.parquet" for number in range(2))
SCRIPT = "<script>alert('Ada')</script> & <b>Co</b>"


def case(name: str, damage: Damage, *words: str, **expected: Any) -> Case:
    """Refused with these words if there are any, else tolerated."""
    return Case(name=f"mllmu: {name}", layout="mllmu", damage=damage, refused=words, tolerated=not words, **expected)


def first(change: Callable[[dict[str, Any]], object], name: str = FORGET) -> Damage:
    """Change the first row of a file."""
    return change_rows(name, lambda rows: change(rows[0]))


def item(column: str, **cells: Any) -> Damage:
    """Change the first item of a list of the first row."""
    return first(lambda row: row[column][0].update(cells))


def choice(**cells: Any) -> Damage:
    """Change the first multiple-choice question of the first row."""
    return first(lambda row: row["Classification_Task"]["Image_Textual_Questions"][0].update(cells))


def options(**texts: Any) -> Damage:
    """Change the options of that question."""
    return first(lambda row: row["Classification_Task"]["Image_Textual_Questions"][0]["Options"].update(texts))


def metadata(text: str | None) -> Damage:
    """Replace a training row's questions."""
    return first(lambda row: row.update(metadata=text), TRAINED)


def entry(**cells: Any) -> Damage:
    """Replace a training row's questions by a single one."""
    return metadata(json.dumps([{"Question": "Who?", "Answer": "Ada", "ID": "1"} | cells]))


def ids(change: Callable[[list[Any]], Any], *names: str) -> Damage:
    """Rewrite the column ID of files."""
    return all_of(*(change_table(name, retype("ID", change)) for name in names))


def picture(content: bytes | None) -> Damage:
    """Another picture in the second training row."""
    return change_rows(TRAINED, lambda rows: rows[1].update(image={"bytes": content, "path": "lost.png"}))


def place(name: str, make: Callable[[Path], object]) -> Damage:
    """Put something else where a file or folder was."""

    def damage(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return damage


def unreadable(name: str) -> Damage:
    """Take away the right to read."""

    def damage(root: Path) -> None:
        if (root / name).is_file():
            overwrite(root / name, (root / name).read_bytes())
        (root / name).chmod(0)

    return damage


def invalid_text(column: str, name: str) -> Damage:
    """Bytes that are no UTF-8 in a text column, as a writer that does not check leaves them."""

    def broken(values: list[Any]) -> pa.Array:
        texts = pa.array([b"caf\xe9 \xff", *(value.encode() for value in values[1:])], pa.binary())
        return texts.view(pa.string())

    return change_table(name, retype(column, broken))


def same_questions(number: int, **cells: Any) -> Callable[[Any], bool]:
    """The training questions of the first forget person still are so many, the first with these cells."""

    def check(benchmark: Any) -> bool:
        found = benchmark.splits().forget
        return len(found) == number and all(getattr(found[0], name) == value for name, value in cells.items())

    return check


FILES = [
    case("cut off file", change_bytes(FORGET, lambda old: old[: len(old) // 2]), FORGET, "not a complete Parquet file"),
    case("cut off train split", change_bytes(TRAINED, lambda old: old[:-9]), TRAINED, "not a complete Parquet file"),
    case("file of zero bytes", change_bytes(TRAINED, lambda old: b""), TRAINED, "not a complete Parquet file"),
    case("web page saved as Parquet", change_bytes(FORGET, lambda old: BROKEN["web page"]), FORGET, "not a complete Parquet"),
    case("pointer of Git LFS", change_bytes(FORGET, lambda old: b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
    case(
        "pages overwritten",
        change_bytes(FORGET, lambda old: old[:4] + b"\xff" * (len(old) // 2) + old[len(old) // 2 + 4 :]),
        FORGET,
    ),
    case(
        "CSV instead of Parquet",
        place("MLLMU-Bench/forget_15", lambda path: (path.mkdir(), (path / "a.csv").write_text("ID"))),
        "forget_15",
        "no Parquet files",
    ),
    case("Test_Set with one of two files", lambda root: (root / TESTS[1]).unlink(), "Test_Set", "1 of 2"),
    case("Test_Set with a third file", lambda root: overwrite(root / TESTS[0].replace("00000", "00002"), b""), "3 of 2"),
    case("no rows", change_rows(TRAINED, lambda rows: rows.clear()), "forget_15", "no rows"),
    case("folder missing", lambda root: shutil.rmtree(root / "MLLMU-Bench/Retain_Set"), "Retain_Set", "no Parquet files"),
    case("folder is a file", place("MLLMU-Bench/Test_Set", lambda path: path.write_text("x")), "Test_Set", "not a folder"),
    case("root is a file", place("MLLMU-Bench", lambda path: path.write_text("x")), "MLLMU-Bench", "not a folder"),
    case("loop of links", place("MLLMU-Bench/forget_15", lambda path: path.symlink_to(path)), "forget_15", "link"),
    case("file that is a loop of links", place(FORGET, lambda path: path.symlink_to(path)), FORGET, "link"),
    case("link that leads nowhere", place(FORGET, lambda path: path.symlink_to("../.git/annex/x")), FORGET, "link"),
    case("folder named like a file", place(FORGET, lambda path: path.mkdir()), FORGET),
    case("folder that may not be read", unreadable("MLLMU-Bench/forget_15"), "forget_15", "may not be read"),
    case("file that may not be read", unreadable(FORGET), FORGET, "may not be read"),
    case("unknown folder", lambda root: (root / "MLLMU-Bench/forget_20").mkdir()),
    case(
        "traces of another system",
        lambda root: all_of(
            lambda _: overwrite(root / FORGET.replace("train-", "._train-"), b"Mac OS X"),
            lambda _: overwrite(root / "MLLMU-Bench/.DS_Store", b"x"),
        )(root),
    ),
]

COLUMNS = [
    case("column ID missing", change_table(TRAINED, lambda table: table.drop_columns(["ID"])), TRAINED, "'ID' is missing"),
    case("column Mask_Task missing", change_table(FORGET, lambda table: table.drop_columns(["Mask_Task"])), "'Mask_Task'"),
    case(
        "image instead of images",
        change_table(TESTS[0], lambda table: table.rename_columns({"images": "image"})),
        TESTS[0],
        "'images' is missing",
        "'image'",
    ),
    case("unknown columns", change_table(FORGET, lambda table: table.append_column("zodiac", pa.array([1] * len(table))))),
    case(
        "column ID twice", change_table(TRAINED, lambda table: table.append_column("ID", table["ID"])), TRAINED, "ID", "twice"
    ),
    case(
        "ID as a whole number",
        ids(lambda old: [int(each) for each in old], FORGET, TRAINED, *TESTS),
        counted="ID without its zeros or with blanks",
    ),
    case(
        "ID as a float", ids(lambda old: [float(each) for each in old], TRAINED), counted="ID without its zeros or with blanks"
    ),
    case(
        "ID that lost its zeros",
        ids(lambda old: [each.lstrip("0") for each in old], FORGET),
        counted="ID without its zeros or with blanks",
        check=lambda bench: len(bench.tasks(("test",))[0].examples) > 0,
    ),
    case("ID with blanks", ids(lambda old: [f" {each}\n" for each in old], TRAINED), counted="ID without its zeros or with"),
    case("ID null", ids(lambda old: [None, *old[1:]], TRAINED), TRAINED, "row 0", "'ID'"),
    case("ID empty", ids(lambda old: ["  ", *old[1:]], TRAINED), TRAINED, "row 0", "'ID'"),
    case("ID that is no number", ids(lambda old: [float("nan"), *map(float, old[1:])], TRAINED), TRAINED, "row 0", "'ID'"),
    case("ID that is a list", ids(lambda old: [[each] for each in old], TRAINED), TRAINED, "row 0", "'ID'"),
    case("ID with control characters", ids(lambda old: ["00\x001", *old[1:]], TRAINED), TRAINED, "row 0", "'ID'"),
    case(
        "image as a path",
        change_table(TRAINED, retype("image", lambda old: ["full_images/001.png"] * len(old))),
        TRAINED,
        "row 0",
        "full_images/001.png",
        "only a path",
    ),
    case("image as bare bytes", change_table(TRAINED, retype("image", lambda old: [each["bytes"] for each in old]))),
    case("image as a number", change_table(TRAINED, retype("image", lambda old: [7] * len(old))), TRAINED, "row 0", "image"),
    case("metadata as bare bytes", change_table(TRAINED, retype("metadata", lambda old: [each.encode() for each in old]))),
    case(
        "tasks as JSON text",
        change_table(FORGET, retype("Classification_Task", lambda old: [json.dumps(x) for x in old])),
        FORGET,
        "row 0",
        "Classification_Task",
    ),
    case(
        "items as JSON text",
        change_table(FORGET, retype("Mask_Task", lambda old: [json.dumps(x) for x in old])),
        FORGET,
        "row 0",
        "Mask_Task",
    ),
    case(
        "keys of the tasks spelt otherwise",
        change_table(
            FORGET,
            retype(
                "Classification_Task",
                lambda old: [
                    {"image_questions": each["Image_Textual_Questions"], "text_questions": each["Pure_Text_Questions"]}
                    for each in old
                ],
            ),
        ),
        FORGET,
        "row 0",
        "Image_Textual_Questions",
        "image_questions",
    ),
    case(
        "options as a list",
        change_table(
            FORGET,
            retype(
                "Classification_Task",
                lambda old: [
                    {name: [{**q, "Options": list(q["Options"].values())} for q in each[name]] for name in each} for each in old
                ],
            ),
        ),
        FORGET,
        "row 0",
        "Options",
    ),
]

CONTENT = [
    case("null in a list", first(lambda row: row["Mask_Task"].append(None)), FORGET, "row 0", "Mask_Task"),
    case(
        "null among the choices",
        first(lambda row: row["Classification_Task"]["Pure_Text_Questions"].insert(0, None)),
        FORGET,
        "row 0",
        "question 0",
    ),
    case(
        "script in a name, in answers and options",
        all_of(
            first(lambda row: row.update(biography=json.dumps({"Name": SCRIPT}), answer=SCRIPT)),
            options(A=SCRIPT, B=SCRIPT + "!"),
            item("Generation_Task", Question=f"Who is {SCRIPT}?", Ground_Truth=SCRIPT),
            entry(Answer=SCRIPT),
        ),
        check=same_questions(21, answer=SCRIPT),
    ),
    case("empty answer", item("Generation_Task", Ground_Truth=""), FORGET, "row 0", "'Ground_Truth'"),
    case("empty question", item("Mask_Task", Question=""), FORGET, "row 0", "'Question'"),
    case("answer of blanks", item("Generation_Task", Ground_Truth=" \t\n"), FORGET, "row 0", "'Ground_Truth'"),
    case("answer of invisible blanks", item("Generation_Task", Ground_Truth="\u200b\ufeff"), FORGET, "row 0", "'Ground_Truth'"),
    case("option missing", options(C=None), FORGET, "row 0", "option C is missing"),
    case("only one option", options(B=None, C=None, D=None), FORGET, "row 0", "option B is missing"),
    case("letter out of range", choice(Correct_Answer="E"), FORGET, "row 0", "'E'"),
    case("letter missing", choice(Correct_Answer=None), FORGET, "row 0", "Correct_Answer"),
    case("option instead of letter", choice(Correct_Answer="a baker"), FORGET, "row 0", "'a baker'"),
    case("small letter", choice(Correct_Answer="b")),
    case("letter with a dot", choice(Correct_Answer="B.")),
    case("letter in brackets", choice(Correct_Answer=" (B) ")),
    case(
        "lists empty", first(lambda row: row.update(Mask_Task=[], Generation_Task=[])), counted="profile without image items in"
    ),
    case(
        "lists null",
        first(lambda row: row.update(Mask_Task=None, Classification_Task=None)),
        counted="profile without Image_Textual_Questions",
    ),
    case(
        "no question at all",
        change_rows(
            FORGET, lambda rows: [row.update(Mask_Task=[], Generation_Task=None, Classification_Task=None) for row in rows]
        ),
        "forget_15",
        "have a question",
    ),
    case("unknown type of item", item("Generation_Task", Type="Video"), counted="Generation_Task item of unknown type"),
    case("blank without underscores", item("Mask_Task", Question="No gap."), counted="cloze question without a blank"),
    case("very long answer", entry(Answer="word " * 100_000), check=same_questions(21, answer="word " * 100_000)),
    case(
        "right to left and combining characters",
        entry(Answer="‏שרה e\u0301 \u202eabc"),
        check=same_questions(21, answer="‏שרה e\u0301 \u202eabc"),
    ),
    case("NUL in an answer", entry(Answer="A\x00da"), TRAINED, "row 0", "'Answer'", "U+0000"),
    case(
        "half of a surrogate pair",
        metadata('[{"Question": "Who?", "Answer": "\\ud83d", "ID": "1"}]'),
        TRAINED,
        "row 0",
        "'Answer'",
        "U+D83D",
    ),
    case("text that is not UTF-8", invalid_text("metadata", TRAINED), TRAINED, "UTF-8"),
    case("biography not JSON", first(lambda row: row.update(biography="{'Name': 'Ada'}")), FORGET, "row 0", "'biography'"),
    case("biography a list", first(lambda row: row.update(biography='["Ada"]')), FORGET, "row 0", "'biography'"),
    case("biography nested", first(lambda row: row.update(biography='{"Parents": {"Mother": {"Name": ["x", {}]}}}'))),
    case(
        "biography nested without end", first(lambda row: row.update(biography="[" * 200_000)), FORGET, "row 0", "'biography'"
    ),
    case("biography null", first(lambda row: row.update(biography=None)), counted="biography missing"),
    case("metadata not JSON", metadata("Question: who?"), TRAINED, "row 0", "'metadata'"),
    case("metadata an object", metadata('{"Question": "Who?", "Answer": "Ada"}'), TRAINED, "row 0", "'metadata'"),
    case(
        "metadata with other keys",
        metadata('[{"question": "Who?", "answer": "Ada"}]'),
        TRAINED,
        "row 0",
        "'Question'",
        "'question'",
    ),
    case("metadata nested without end", metadata("[" * 200_000), TRAINED, "row 0", "'metadata'"),
    case("metadata that are no number", metadata('[{"Question": "Who?", "Answer": NaN}]'), TRAINED, "row 0", "'Answer'"),
    case("metadata without questions", metadata("[]"), counted="row without training questions"),
]


def add_first_of(source: str, *targets: str) -> Damage:
    """Copy a person into other files."""

    def damage(root: Path) -> None:
        taken: Rows = []
        change_rows(source, lambda rows: taken.append(rows[0]))(root)
        for target in targets:
            change_rows(target, lambda rows: rows.append(taken[0]))(root)

    return damage


def without_other_portraits(root: Path) -> None:
    """Take the first forget person out of Test_Set."""
    found: list[str] = []
    change_rows(FORGET, lambda rows: found.append(rows[0]["ID"]))(root)
    for name in TESTS:
        change_rows(name, lambda rows: rows.__setitem__(slice(None), [row for row in rows if row["ID"] not in found]))(root)


def without_first(rows: Rows) -> None:
    """Take a person out of a file."""
    del rows[0]


PEOPLE = [
    case("row twice", change_rows(TRAINED, lambda rows: rows.append(rows[0])), TRAINED, "row 2", "row 0", "already"),
    case("ID twice", ids(lambda old: [old[0], old[0]], TRAINED), TRAINED, "row 1", "row 0", "already"),
    case(
        "ID twice, once without its zeros",
        change_rows(KEPT, lambda rows: rows.append({**rows[0], "ID": rows[0]["ID"][1:]})),
        KEPT,
        "row 8",
        "row 0",
        "already",
    ),
    case("person in forget and retain train splits", add_first_of(TRAINED, KEPT), "forget_15", "retain_85", "both"),
    case("person in forget and retain", add_first_of(FORGET, RETAIN), "forget_15", "retain_85", "both"),
    case("forget person absent in Test_Set", without_other_portraits, counted="forget person without a row (Test_Set)"),
    case("Test_Set of other people", ids(lambda old: [f"x{each}" for each in old], *TESTS), "Test_Set", "none of the people"),
    case(
        "train split of other people",
        ids(lambda old: [f"{int(each) + 500}" for each in old], TRAINED),
        "baseline_train_split",
        "forget_15",
        "none of the people",
    ),
    case("train split without one of the people", change_rows(TRAINED, without_first), counted="person in one of two folders"),
]


PICTURES = [
    case("image null", change_rows(TRAINED, lambda rows: rows[1].update(image=None)), TRAINED, "row 1", "image is missing"),
    case("image path that leads nowhere", picture(None), TRAINED, "row 1", "lost.png", "only a path"),
    case("image of no bytes", picture(b""), TRAINED, "row 1", "lost.png"),
    case(
        "no other portraits",
        all_of(*(change_rows(name, lambda rows: [row.update(images=[]) for row in rows]) for name in TESTS)),
        "Test_Set",
        "row 0",
        "empty list",
    ),
    *(case(f"image: {name}", picture(content), TRAINED, "row 1", "ID", "image") for name, content in BROKEN.items()),
    *(case(f"image: {name}", picture(content)) for name, content in SOUND.items()),
]

CASES = [*FILES, *COLUMNS, *CONTENT, *PEOPLE, *PICTURES]
