"""Damages of a folder with somebody's own people."""

import json
from collections.abc import Callable
from typing import Any

from damage.cases_mllmu import SCRIPT, unreadable
from damage.damaged_pictures import BROKEN, SOUND
from damage.damaging import OWN_TABLE, Case, Damage, all_of, change_bytes, overwrite

HEADER, *LINES = OWN_TABLE.splitlines()


def case(name: str, damage: Damage, *words: str, **expected: Any) -> Case:
    """Refused with these words if there are any, else tolerated."""
    return Case(name=f"table: {name}", layout="table", damage=damage, refused=words, tolerated=not words, **expected)


def lines(change: Callable[[str], str]) -> Damage:
    """Change the text of the table."""
    return change_bytes("people.csv", lambda old: change(old.decode()).encode())


def added(*rows: str) -> Damage:
    """Rows more; the first of them is row 7, as a spreadsheet counts."""
    return lines(lambda old: old + "\n".join(rows) + "\n")


def as_json(*records: Any) -> Damage:
    """Another table, one JSON value a line."""
    good = [{"subject": name, "question": "Who?", "answer": name} for name in ("Ada", "Bo")]
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in (*good, *records))
    return all_of(lambda root: (root / "people.csv").unlink(), lambda root: overwrite(root / "people.jsonl", text.encode()))


def picture(content: bytes) -> Damage:
    """Other bytes in a portrait."""
    return lambda root: overwrite(root / "ada.png", content)


CASES = [
    case("file of zero bytes", lines(lambda old: ""), "people.csv", "has no rows"),
    case("header alone", lines(lambda old: HEADER), "people.csv", "has no rows"),
    case("no header", lines(lambda old: "\n".join(LINES)), "people.csv", "'subject'"),
    case("column missing", lines(lambda old: old.replace("answer", "anser")), "people.csv", "'answer'", "'anser'"),
    case("column twice", lines(lambda old: old.replace("kind", "subject", 1)), "people.csv", "twice"),
    case(
        "unknown column",
        lines(
            lambda old: "".join(
                f"{line},x\n"
                for line in old.replace("reworded", "reworded,zodiac", 1).replace("zodiac\n", "zodiac\n").splitlines()
            ).replace("zodiac,x", "zodiac")
        ),
        counted="column that is not read",
    ),
    case("Latin-1", change_bytes("people.csv", lambda old: old + "Bo,,,Café?,é,,\n".encode("latin-1")), "line 7", "UTF-8"),
    case("UTF-16", change_bytes("people.csv", lambda old: old.decode().encode("utf-16")), "people.csv", "UTF-8"),
    case(
        "byte order mark and semicolons",
        change_bytes(
            "people.csv", lambda old: b"\xef\xbb\xbf" + old.replace(b'"A judge, he says."', b"A judge").replace(b",", b";")
        ),
    ),
    case(
        "spreadsheet itself", change_bytes("people.csv", lambda old: b"PK\x03\x04" + bytes(range(256))), "people.csv", "UTF-8"
    ),
    case("NUL in an answer", added("Bo,,,What?,A\x00da,,"), "row 7", "U+0000"),
    case("quotation mark left open", added('Bo,,,What?,"open,,'), "row 7"),
    case("too many cells", added("Bo,,,What, then?,that,,,"), "row 7"),
    case("answer empty", added("Bo,,,What?, ,,"), "row 7", "'answer' is empty"),
    case("question empty", added("Bo,,,,that,,"), "row 7", "'question' is empty"),
    case("subject empty", added(",,,What?,that,,"), "row 7", "'subject' is empty"),
    case("only one option", added("Bo,,choice,What?,that,that,"), "row 7", "two options"),
    case("option empty", added("Bo,,choice,What?,that,that||this,"), "row 7", "option is empty"),
    case("answer that is no option", added("Bo,,choice,What?,that,this|those,"), "row 7", "'that'"),
    case("gap missing", added("Bo,,cloze,What?,that,,"), "row 7", "no gap"),
    case("unknown kind", added("Bo,,chioce,What?,that,,"), "row 7", "'choice'"),
    case("row twice", added(LINES[0]), "row 7", "row 2"),
    case("one name in two spellings", added("BO,,,What?,that,,"), "row 7", "row 5"),
    case("script in name and answer", added(f'"{SCRIPT}",,,Who is it?,"{SCRIPT}",,')),
    case("right to left and combining characters", added("Bo,,,What?,‏שרה e\u0301 \u202eabc,,")),
    case("very long answer", added(f"Bo,,,What?,{'word ' * 20_000},,")),
    case("answer beyond the limit of CSV", added(f"Bo,,,What?,{'word ' * 100_000},,"), "row 7"),
    case("line that is not JSON", as_json("{broken"), "row 3", "not JSON"),
    case("JSON that is no object", as_json([1]), "row 3", "not an object"),
    case("JSON nested without end", as_json("[" * 200_000), "row 3", "JSON"),
    case("JSON with a list as answer", as_json({"subject": "Bo", "question": "Who?", "answer": ["x"]}), "row 3", "'answer'"),
    case("JSON with NaN", as_json('{"subject": "Bo", "question": "Who?", "answer": NaN}'), "row 3", "'answer'"),
    case("half of a surrogate pair", as_json('{"subject": "Bo", "question": "What?", "answer": "\\ud83d"}'), "row 3", "U+D83D"),
    case("table missing", lambda root: (root / "people.csv").unlink(), "people.csv", "no such file"),
    case("table that may not be read", unreadable("people.csv"), "people.csv", "cannot be read"),
    case("forget person absent", lines(lambda old: old.replace("Ada", "Eva")), "'Ada'", "not in the table"),
    case("image that leads nowhere", added("Bo,lost.png,,What?,that,,"), "row 7", "lost.png"),
    case("image outside of the folder", added("Bo,../mllmu/x.png,,What?,that,,"), "row 7", "not inside"),
    case(
        "image that is a loop of links",
        lambda root: [(root / "ada.png").unlink(), (root / "ada.png").symlink_to("ada.png")],
        "row 2",
        "ada.png",
    ),
    *(case(f"image: {name}", picture(content), "row 2", "ada.png") for name, content in BROKEN.items()),
    *(case(f"image: {name}", picture(content)) for name, content in SOUND.items()),
]
