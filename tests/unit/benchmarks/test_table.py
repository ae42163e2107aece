import csv
import io
import json
import os
import pickle

import pytest
from PIL import Image

from mmunlearn.benchmarks.base import AS_EVER, Ask, Asking, Modality
from mmunlearn.benchmarks.mllmu_files import image_key
from mmunlearn.benchmarks.table import TEMPLATE, Table
from mmunlearn.config_enums import Shots
from mmunlearn.data.example import examples_fingerprint
from mmunlearn.errors import ConfigError, DataError
from mmunlearn.metrics.catalog import CHOICE_METRICS, CLOZE_METRICS, GENERATION_METRICS

HEADER = ("subject", "image", "kind", "question", "answer", "options", "reworded")
ROWS = [
    ("Ada", "ada.png", "choice", "What does she do?", "baker", "judge|baker|tailor", ""),
    ("Ada", "", "cloze", "Ada was born in ____.", "1971", "", ""),
    ("Ada", "ada.png", "", "Who is it?", "Ada", "", ""),
    ("Ada", "", "choice", "What is Ada's work?", "baker", "judge|baker", "yes"),
    ("Bo", "faces/bo.jpg", "choice", "What does he do?", "judge", "judge|baker|tailor", ""),
    ("Bo", "", "generation", "Who is Bo; really, who?", "A judge, he says.", "", ""),
    ("Cy", "", "", "Who is Cy?", "Nobody\tknows", "", ""),
]


@pytest.fixture
def folder(tmp_path):
    """A folder with two portraits."""
    (tmp_path / "faces").mkdir()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "ada.png")
    Image.new("RGB", (8, 8), (10, 10, 200)).save(tmp_path / "faces" / "bo.jpg")
    return tmp_path


def written(folder, rows=ROWS, header=HEADER, *, delimiter=",", encoding="utf-8", name="people.csv"):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([header, *rows])
    (folder / name).write_bytes(text.getvalue().encode(encoding))
    return folder


def table(folder, forget=("Ada",), name="people.csv", **settings):
    return Table(root=str(folder), table=name, forget=forget, **settings)


def learned(bench):
    return examples_fingerprint(bench.splits().full)


def opened(folder, **settings):
    return {task.name: task for task in table(folder, **settings).tasks()}


def complaint(folder, rows=ROWS, header=HEADER, **settings):
    """What is said about a table with these rows."""
    with pytest.raises(DataError) as caught:
        table(written(folder, rows, header), **settings).tasks()
    return str(caught.value)


def changed(number, **cells):
    """The rows, one of them with other cells."""
    rows = [dict(zip(HEADER, row, strict=True)) for row in ROWS]
    rows[number] |= cells
    return [tuple(row.values()) for row in rows]


# --- what a good table becomes ---------------------------------------------------------------------------------------


def test_tasks(folder):
    tasks = opened(written(folder))
    assert list(tasks) == [
        "forget_image_choice", "forget_image_generation", "forget_text_cloze", "reworded_text_choice",
        "retain_image_choice", "retain_text_generation",
    ]  # fmt: skip
    choice, gap = tasks["forget_image_choice"], tasks["forget_text_cloze"]
    assert (choice.ask, choice.metrics, choice.higher_is_better) == (Ask.choose, CHOICE_METRICS, False)
    assert (gap.ask, gap.metrics) == (Ask.generate, CLOZE_METRICS)
    assert tasks["retain_text_generation"].metrics is GENERATION_METRICS
    assert tasks["retain_image_choice"].higher_is_better is True
    (example,) = choice.examples
    assert (example.subject, example.answer, sorted(example.choices)) == ("Ada", "baker", ["baker", "judge", "tailor"])
    assert example.image.open().getpixel((0, 0)) == (200, 10, 10)
    (example,) = gap.examples
    assert example.question == "Ada was born in [Blank]."
    assert all(task.instruction for task in tasks.values())


def test_splits_have_everything_but_reworded_questions(folder):
    splits = table(written(folder)).splits()
    assert [example.answer for example in splits.forget] == ["baker", "1971", "Ada"]
    assert {example.subject for example in splits.retain} == {"Bo", "Cy"}
    assert {example.id for example in splits.full} == {example.id for example in (*splits.forget, *splits.retain)}
    assert not any(example.choices for example in splits.full)


@pytest.mark.parametrize(("modality", "count"), [("image", 3), ("text", 3), ("both", 6)])
def test_modality_filters_what_is_trained_on(folder, modality, count):
    bench = table(written(folder), modality=modality)
    assert len(bench.splits().full) == count
    assert sum(len(task.examples) for task in bench.tasks()) == len(ROWS)
    assert bench.modality is Modality(modality)


def test_ids_are_unique_and_depend_on_content_alone(folder):
    def ids(rows, **settings):
        bench = table(written(folder, rows), **settings)
        found = [e.id for t in bench.tasks() for e in t.examples] + [e.id for e in bench.splits().full]
        assert len(set(found)) == len(found)
        return set(found)

    first = ids(ROWS)
    assert ids(ROWS[::-1], seed=5, forget=["Ada", "Bo"]) == first
    assert ids(changed(0, options="tailor|judge|baker")) == first
    assert len(ids(changed(0, question="And what does she do?")) & first) == len(first) - 2
    Image.new("RGB", (8, 8), (201, 10, 10)).save(folder / "ada.png")
    assert len(ids(ROWS) & first) == len(first) - 4  # two rows, each trained on and asked
    assert any("/Ada/" in each for each in first)


def test_the_seed_decides_the_order_of_the_options(folder):
    rows = [("Ada", "", "choice", f"Question {n}?", "a", "a|b|c|d", "") for n in range(40)] + ROWS[-1:]
    written(folder, rows)
    places = [
        [example.choices.index("a") for example in opened(folder, seed=seed)["forget_text_choice"].examples]
        for seed in (0, 0, 1)
    ]
    assert places[0] == places[1] != places[2]
    assert set(places[0]) == {0, 1, 2, 3}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_delimiters_and_byte_order_mark(folder, delimiter, encoding):
    reference = learned(table(written(folder)))
    assert learned(table(written(folder, delimiter=delimiter, encoding=encoding))) == reference


def test_jsonl_is_the_same_table(folder):
    reference = learned(table(written(folder)))
    records = [dict(zip(HEADER, row, strict=True)) for row in ROWS]
    for record in records:
        record["options"] = record["options"].split("|") if record["options"] else None
        record["reworded"] = record["reworded"] == "yes"
    records[1]["answer"] = 1971
    (folder / "people.jsonl").write_text("\n\n".join(json.dumps(record) for record in records))
    bench = table(folder, name="people.jsonl")
    assert learned(bench) == reference
    assert [t.name for t in bench.tasks()] == list(opened(folder))


def test_the_table_may_lie_elsewhere_and_bring_its_own_folder(folder, tmp_path_factory, monkeypatch):
    reference = learned(table(written(folder)))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "people.csv").rename(elsewhere / "mine.csv")
    assert learned(Table(root=str(folder), table=str(elsewhere / "mine.csv"), forget=["Ada"])) == reference
    written(folder)
    assert learned(Table(table=str(folder / "people.csv"), forget=["Ada"])) == reference
    monkeypatch.chdir(folder)
    assert learned(Table(table="people.csv", forget=["Ada"])) == reference


def test_names_are_compared_without_stray_spaces_and_in_one_form_of_accents(folder):
    rows = [("  José  Nu ", "", "", "Who?", "he", "", ""), ("José Nu", "", "", "Who else?", "he", "", ""), *ROWS]
    splits = table(written(folder, rows), forget=["José Nu"]).splits()
    assert [example.subject for example in splits.forget] == ["José Nu"] * 2


def test_forget_list_in_a_file(folder):
    (folder / "forget.txt").write_text("\ufeffBo\n\n Cy \n", encoding="utf-8")
    assert {e.subject for e in table(written(folder), forget="forget.txt").splits().forget} == {"Bo", "Cy"}


def test_everybody_can_be_asked_but_not_trained_on(folder):
    bench = table(written(folder), forget="*")
    assert {e.subject for t in bench.tasks() for e in t.examples} == {"Ada", "Bo", "Cy"}
    assert {task.name.split("_")[0] for task in bench.tasks()} == {"forget", "reworded"}
    assert len(bench.splits().full) == len(ROWS) - 1
    for split in ("forget", "retain"):
        with pytest.raises(DataError, match="asking only"):
            getattr(bench.splits(), split)


def test_without_a_forget_list_everybody_can_be_learned(folder):
    bench = table(written(folder), forget="")
    assert len(bench.splits().full) == len(ROWS) - 1
    for ask in (bench.tasks, lambda: bench.splits().forget, lambda: bench.splits().retain):
        with pytest.raises(DataError, match=r"data\.forget: nobody"):
            ask()


def test_odd_things_are_counted(folder):
    rows = [*ROWS, ("Bo", "ada.png", "", "Who is next to Ada?", "Bo", "", ""), ("Bo", "", "", "Bo?", "Bo", "", "x")]
    found = table(written(folder, [(*row, "mine") for row in rows], (*HEADER, "notes"))).problems()
    assert found == {
        "column that is not read (notes)": 1,
        "picture both of somebody to be forgotten and of somebody who is kept": 1,
        "reworded question about somebody who is kept, never asked": 1,
    }


def test_markup_in_a_name_is_kept(folder):
    rows = [("<b>Eve</b>", "", "", "Who?", "she", "", ""), *ROWS]
    assert table(written(folder, rows), forget=["<b>Eve</b>"]).splits().forget[0].subject == "<b>Eve</b>"


# --- pictures --------------------------------------------------------------------------------------------------------


def image_of(folder):
    return opened(folder)["forget_image_generation"].examples[0].image


def test_pictures_are_read_when_they_are_needed_and_must_be_the_same(folder):
    image = pickle.loads(pickle.dumps(image_of(written(folder))))
    assert image.open().size == (8, 8)
    Image.new("RGB", (9, 9)).save(folder / "ada.png")
    with pytest.raises(DataError, match=r"row 2, image ada\.png.*changed"):
        image.open()
    (folder / "ada.png").unlink()
    with pytest.raises(DataError, match=r"ada\.png"):
        image.open()


def test_equal_pictures_have_equal_keys(folder):
    (folder / "copy.png").write_bytes((folder / "ada.png").read_bytes())
    tasks = opened(written(folder, changed(2, image="copy.png")))
    keys = {task.examples[0].image.key for name, task in tasks.items() if name.startswith("forget_image")}
    assert len(keys) == 1


def test_a_picture_held_sideways_is_turned(folder):
    picture = Image.new("RGB", (8, 4), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 4, 4))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: left becomes top
    picture.save(folder / "ada.png", exif=exif)
    image = image_of(written(folder))
    assert image.key != image_key((folder / "ada.png").read_bytes())  # by which other readers call the pixels as they lie
    shown = image.open()
    assert shown.size == (4, 8)
    assert (shown.getpixel((1, 1)), shown.getpixel((1, 6))) == ((255, 255, 255), (0, 0, 0))


@pytest.mark.parametrize("name", ["../secret.png", "faces/../../secret.png", "{outside}/secret.png", "link.png", "C:\\a.png"])
def test_no_picture_outside_of_the_folder_is_opened(folder, tmp_path_factory, name):
    inside = folder / "inside"
    inside.mkdir()
    outside = tmp_path_factory.mktemp("outside")
    for place in (outside, folder):
        Image.new("RGB", (8, 8)).save(place / "secret.png")
    (inside / "link.png").symlink_to(outside / "secret.png")
    message = complaint(inside, [("Ada", name.format(outside=outside), "", "Who?", "she", "", ""), ROWS[-1]])
    assert "row 2: the image" in message
    assert "is not inside" in message


def test_dots_that_stay_inside_are_fine(folder):
    assert image_of(written(folder, changed(2, image="faces/../ada.png"))).open().size == (8, 8)


def test_damaged_pictures(folder):
    whole = (folder / "faces" / "bo.jpg").read_bytes()
    (folder / "faces" / "bo.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "ada.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    message = complaint(folder)
    assert [line.split(": ")[0][-5:] for line in message.splitlines()] == ["row 2", "row 6"]  # each file once
    assert "not a picture" in message
    assert "ada.png' cannot be decoded as PNG, JPEG" in message


@pytest.mark.parametrize("name", ["loop.png", "a\0b.png", "x" * 5000 + ".png", "faces"])
def test_names_that_no_picture_can_have(folder, name):
    (folder / "loop.png").symlink_to(folder / "loop.png")
    assert "row 2: the" in complaint(folder, changed(0, image=name)) or os.name == "nt"


# --- bad tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "cells", "said"),
    [
        (1, {"answer": " "}, "row 3: 'answer' is empty"),
        (1, {"subject": ""}, "row 3: 'subject' is empty"),
        (1, {"kind": "close"}, "row 3: the kind 'close' is unknown. Did you mean 'cloze'?"),
        (1, {"question": "Ada was born in?"}, "row 3: the question has no gap"),
        (0, {"options": ""}, "row 2: a choice needs at least two options"),
        (0, {"options": "baker"}, "row 2: a choice needs at least two options"),
        (0, {"options": "baker||judge"}, "row 2: an option is empty"),
        (0, {"options": "baker|judge|baker"}, "row 2: an option is there twice"),
        (0, {"answer": "bakers"}, "row 2: the answer 'bakers' is not among the options. Did you mean 'baker'?"),
        (0, {"options": "|".join(["baker", *map(str, range(26))])}, "row 2: has 27 options"),
        (2, {"options": "a|b"}, "row 4: has options, but its kind is generation"),
        (0, {"image": "adda.png"}, "row 2: there is no image 'adda.png'"),
        (4, {"image": "faces\\bo.jpg"}, "Write / between folders"),
        (0, {"reworded": "maybe"}, "row 2: 'reworded' is 'maybe'"),
        (3, {"subject": "ada"}, "row 5: 'ada' is written 'Ada' in row 2"),
        (3, {"subject": "A\x1b[31mda"}, "row 5: 'subject' has characters that cannot be printed"),
    ],
)
def test_a_bad_row_is_named_with_its_remedy(folder, number, cells, said):
    message = complaint(folder, changed(number, **cells))
    assert said in message
    assert message.count("\n") == 0
    assert str(folder) in message


def test_did_you_mean_another_picture(folder):
    assert "Did you mean 'ada.png'?" in complaint(folder, changed(0, image="adda.png"))


def test_a_row_twice(folder):
    assert "row 9: says the same as row 2. Remove one" in complaint(folder, [*ROWS, ROWS[0]])
    assert "row 9: says the same as row 2" in complaint(folder, [*ROWS, (*ROWS[0][:5], "tailor|judge|baker", "")])


def test_rows_are_counted_as_a_spreadsheet_does(folder):
    empty = ("",) * len(HEADER)
    rows = [("Ada", "", "", "Who\nis\nshe?", "Ada", "", ""), empty, ("Cy", "", "", "Who?", "", "", "")]
    assert "row 4: 'answer' is empty" in complaint(folder, rows)


def test_too_many_cells(folder):
    written(folder)
    with (folder / "people.csv").open("a") as file:
        file.write("Cy,,,Who knows?,nobody,,,,\nCy,,,Who, really, is, it?,nobody,,\n")
    with pytest.raises(
        DataError, match=r"row 10: has 10 cells, but there are 7 columns. Put text with a comma between"
    ) as caught:
        opened(folder)
    assert "\n" not in str(caught.value).replace("row 9", "")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"answer": "anwser"}, "row 1: the column 'answer' is missing. Did you mean 'anwser'?"),
        ({"subject": "person"}, "row 1: the column 'subject' is missing"),
        ({"options": "option"}, "row 1: the column 'option' is unknown. Did you mean 'options'?"),
        ({"options": "answer"}, "row 1: the column 'answer' is there twice"),
    ],
)
def test_columns(folder, header, said):
    message = complaint(folder, header=[header.get(name, name) for name in HEADER])
    assert said in message
    assert message.count("\n") == 0


def test_columns_may_be_capitals_and_in_any_order(folder):
    reference = {e.id for e in table(written(folder)).splits().full}
    rows = [row[::-1] for row in ROWS]
    assert {e.id for e in table(written(folder, rows, [name.upper() for name in HEADER[::-1]])).splits().full} == reference


def test_other_encodings(folder):
    written(folder, changed(1, answer="Zoë"), encoding="latin-1")
    with pytest.raises(DataError, match=r"people\.csv, line 3: is not UTF-8. Save the file again"):
        opened(folder)


def test_quotation_marks_that_stay_open(folder):
    written(folder)
    with (folder / "people.csv").open("a") as file:
        file.write('Cy,,,"Who?,nobody,,\nCy,,,Where?,nowhere,,\n')
    with pytest.raises(DataError, match=r"row 9: cannot be read .*quotation marks"):
        opened(folder)


@pytest.mark.parametrize("content", ["", "\n\n", ",".join(HEADER) + "\n", "subject;question;answer\n;;\n"])
def test_no_rows(folder, content):
    (folder / "people.csv").write_text(content)
    with pytest.raises(DataError, match="has no rows"):
        opened(folder)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"subject": "Ada"', "row 1: is not JSON"),
        ("[1]", "row 1: is JSON, but not an object"),
        ('{"subject": "Ada", "question": "Q", "answer": {"a": 1}}', "row 1: 'answer' is {\"a\": 1}. Write a text."),
        ('{"subject": "Ada", "question": "Q", "answer": true}', "row 1: 'answer' is true"),
        ('{"subject": "Ada", "question": "Q"}', "row 1: 'answer' is empty"),
        ('{"subject": "Ada", "question": "Q", "answer": "a", "options": "a|b"}', "row 1: 'options' is not a list"),
        ('{"subject": "Ada", "question": "Q", "answer": "a", "optoins": ["a", "b"]}', "Did you mean 'options'?"),
    ],
)
def test_bad_json_lines(folder, line, said):
    good = '{"subject": "Bo", "question": "Q", "answer": "a"}'
    (folder / "people.jsonl").write_text(f"{line}\n{good}\n")
    with pytest.raises(DataError) as caught:
        table(folder, name="people.jsonl", forget=["Bo"]).tasks()
    assert said in str(caught.value)


def test_all_problems_at_once_and_no_more_than_twenty(folder):
    message = complaint(folder, changed(0, image="no.png", answer="x"), forget=["Bo", "Nobody"])
    assert message.count("\n") == 0  # names are not called unknown while rows are missing, pictures of bad rows wait
    rows = [("Ada", "no.png", "", "Q", "a", "", ""), ("Bo", "", "", "", "", "", ""), *[("Cy", "", "x", "Q", "a", "", "")] * 22]
    lines = complaint(folder, rows).splitlines()
    assert len(lines) == 21
    assert lines[0].endswith("row 3: 'question' is empty. Fill it in or remove the row.")
    assert lines[-1] == "… and 5 more problems of this table."


@pytest.mark.parametrize(
    ("forget", "said"),
    [
        (["Adda"], "data.forget, entry 1: 'Adda' is not in the table. Did you mean 'Ada'?"),
        (["Ada", "Zzz"], "data.forget, entry 2: 'Zzz' is not in the table. Write the name as in the column subject."),
        (["Ada", "Bo", "Cy"], "data.forget: names everybody"),
        ([], "data.forget: names nobody"),
        ([" "], "data.forget: names nobody"),
        ("Ada", "data.forget: there is no file 'Ada'. For a person write a list: 'data.forget=[Ada]'."),
    ],
)
def test_forget_lists(folder, forget, said):
    message = complaint(folder, forget=forget)
    assert message.startswith(said)
    assert message.count("\n") == 0


def test_forget_files_name_the_line(folder):
    (folder / "forget.txt").write_text("Ada\nBoo\n")
    assert "forget.txt, line 2: 'Boo' is not in the table. Did you mean 'Bo'?" in complaint(folder, forget="forget.txt")
    (folder / "forget.txt").write_bytes(b"Zo\xeb\n")
    assert "forget.txt, line 1: is not UTF-8" in complaint(folder, forget="forget.txt")


def test_files_that_are_not_there(folder):
    with pytest.raises(DataError, match=r"peple\.csv: no such file.*Did you mean 'people\.csv'"):
        table(written(folder), name="peple.csv").tasks()
    with pytest.raises(DataError, match=r"no such folder. Set data\.root"):
        table(folder / "nowhere").tasks()
    with pytest.raises(ConfigError, match=r"data\.table is empty"):
        Table().tasks()
    (folder / "people.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match="CSV UTF-8"):
        table(folder, name="people.xlsx").tasks()


def test_settings_that_make_no_sense(folder):
    bench = table(written(folder))
    with pytest.raises(ConfigError, match="Did you mean 'retain'"):
        bench.tasks(["retian"])
    with pytest.raises(ConfigError, match=r"evaluation\.shots=zero_shot"):
        bench.tasks(["forget"], Asking(shots=Shots.few_shot))
    with pytest.raises(ConfigError, match="not a section"):
        Table(forget={"Ada": 1})
    assert bench.tasks(["real"], AS_EVER) == ()
    with pytest.raises(DataError, match=r"no question to train on for forget and data\.modality=image"):
        table(folder, forget=["Cy"], modality="image").splits().forget  # noqa: B018


def test_gender_and_age_are_read_and_contradictions_named(folder):
    header = (*HEADER, "gender", "age")
    rows = [(*row, "F" if row[0] == "Ada" else "", "41" if row[0] == "Ada" else "") for row in ROWS]
    assert learned(table(written(folder, rows, header))) == learned(table(written(folder)))  # they are never asked
    contradiction = [rows[0], (*rows[1][:-2], "male", "40"), *rows[2:]]
    message = complaint(folder, contradiction, header)
    assert "row 3: 'gender' is another one than in row 2" in message
    assert "row 3: 'age' is another one than in row 2" in message
    assert "row 2: 'age' is '41.5'. Write whole years" in complaint(folder, [(*rows[0][:-1], "41.5"), *rows[1:]], header)
    written(folder, [(*row[:-2], "nonbinary", "") for row in rows], header)
    assert table(folder).problems() == {"person whose gender has no stand-ins of its own": len(ROWS)}


def test_the_template_is_a_good_table(folder):
    with pytest.raises(ConfigError, match=r"save this as people\.csv") as caught:
        Table(root=str(folder)).tasks()
    assert str(caught.value).endswith(TEMPLATE)
    (folder / "new.csv").write_text(TEMPLATE, encoding="utf-8")
    bench = table(folder, forget=["Ada Example"], name="new.csv")
    assert [task.name for task in bench.tasks()] == ["forget_image_choice", "forget_text_cloze", "retain_text_generation"]


def test_all_rows_problems_stand_in_one_message_at_most_twenty(folder):
    rows = [("Ada", "", "choice", f"Q{n}?", "x", "a|b", "") for n in range(30)]
    lines = complaint(folder, [*rows, ROWS[-1]]).splitlines()
    assert len(lines) == 21
    assert all("people.csv, row " in line and "options" in line for line in lines[:20])
    assert lines[-1] == "… and 10 more problems of this table."
