"""Whom a text, an id or the name of a file is about; whole commands are in test_own_people.py."""

import html
import json
import shlex
import time
import unicodedata
from urllib.parse import quote, quote_plus

import pytest
import yaml
from purge_cases import (
    ADA,
    BO,
    evaluation,
    examples_about,
    write_settings,
)

from mmunlearn.config import PurgeConfig
from mmunlearn.data.subjects import Part, empty_record, part_of_name, subjects_record, with_names
from mmunlearn.errors import ConfigError
from mmunlearn.purge.job import purge
from mmunlearn.purge.people import PURGED, People, subjects_in_id
from mmunlearn.purge.plan import make_plan
from mmunlearn.purge.scan import scan
from mmunlearn.run import Run, write_json


@pytest.mark.parametrize(
    ("example_id", "name", "own"),
    [
        ("table/Ada Example/text/cloze/00ff", ADA, True),
        ("table/Ada Example/image/00ff", "  ada   EXAMPLE ", True),
        ("table/Ada Example Jr/image/00ff", ADA, False),
        ("table/Ada/Example/text/00ff", "Ada/Example", True),
        ("people/forget_15/006/image/choice/0", "006", True),
        ("people/Test_Set/006/image/choice/0", "006", True),
        ("people/Retain_Set/006/image/choice/0", "006", False),
        ("people/Retain_Set/006/image/choice/0", "real-006", True),
        ("people/public_figures/006/text/0", "real-006", True),
        ("people/Holdout_Set/006/text/0", "holdout-006", True),
        ("people/forget_15/006/image/choice/0", "real-006", False),
        ("people/forget_15/006/image/choice/0", "0", False),
        ("clear/forget05+tofu/image/caption/3", ADA, False),
    ],
)
def test_ids_say_whom_they_are_about(example_id, name, own):
    assert People([name]).own(example_id, {}) is own
    assert (People([name]).has(next(iter(subjects_in_id(example_id)))) or own) is own


def test_what_scores_say_stands_against_what_an_id_looks_like():
    assert People([ADA]).own("clear/forget05/image/caption/3", {"clear/forget05/image/caption/3": "ADA EXAMPLE"})
    assert not People(["006"]).own("people/forget_15/006/image/0", {"people/forget_15/006/image/0": "007"})


@pytest.mark.parametrize(
    ("stem", "name", "own"),
    [
        ("table_Ada Example_image_00ff", ADA, True),
        ("table_Not Ada Example_image_00ff", ADA, False),
        ("people_forget_15_006_image_0", "006", True),
        ("people_Retain_Set_006_image_0", "006", False),
        ("people_Retain_Set_006_image_0", "real-006", True),
        ("people_forget_15_006_image_0", "real-006", False),
        ("people_forget_15_1006_image_0", "006", False),
    ],
)
def test_pictures_are_told_by_their_names(stem, name, own):
    assert People([name]).own_picture(stem) is own


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("This is Ada Example.", True),
        ("this is ada\n  EXAMPLE", True),
        ("Ada Examples", False),
        ("Áda Exámple", True),
        ("Ada", False),
        ("", False),
    ],
)
def test_names_in_texts(text, named):
    people = People([ADA])
    assert people.named_in(text) is named
    assert not people.named_in(people.without_names(text))
    assert (people.without_names(text) == text) is not named


def test_numbers_and_very_short_names_are_not_looked_for_in_texts():
    people = People(["006", "Bo"])
    assert not people.named_in("006 and Bo")
    assert people.has("Bo")
    assert people.has("006")
    assert People(["José"]).without_names("a José, b") == f"a {PURGED}, b"


def test_nobody_is_an_error(tmp_path):
    for names in ([], [" "]):
        with pytest.raises(ConfigError, match=r"purge\.subjects is empty"):
            purge(PurgeConfig(subjects=names, folders=[str(tmp_path)]))
    for folders in ([], [str(tmp_path / "gone")]):
        with pytest.raises(ConfigError, match=r"purge\.folders"):
            purge(PurgeConfig(subjects=[ADA], folders=folders))


def test_a_record_answers_for_a_name_and_shows_none():
    record = subjects_record(learned=examples_about(ADA), forgot=examples_about("Zoë Nu"))
    assert part_of_name(record, " ada  example") is Part.learned
    assert part_of_name(record, "Zoe\u0308 Nu") is Part.forgot  # accents in another form
    assert part_of_name(record, BO) is None
    assert ADA not in json.dumps(record)
    assert record["complete"]


def test_the_same_person_has_other_hashes_in_other_data():
    first, second = (subjects_record(learned=examples_about(*names), forgot=()) for names in ((ADA,), (ADA, BO)))
    assert not set(first["learned"]) & set(second["learned"])


def test_a_record_can_be_completed():
    record = with_names(empty_record("key"), Part.forgot, [ADA])
    assert part_of_name(record, ADA) is Part.forgot
    assert not record["complete"]
    assert with_names(record, Part.forgot, [ADA]) == record


# --- names in other forms ---------------------------------------------------------------------------------------------

JOSE = "José O'Núñez"


@pytest.mark.parametrize(
    "text",
    [
        unicodedata.normalize("NFC", JOSE),
        unicodedata.normalize("NFD", JOSE),
        json.dumps(JOSE),
        json.dumps(json.dumps({"who": JOSE})),
        yaml.safe_dump({"who": [JOSE]}),
        html.escape(JOSE),
        "Jos&eacute; O&#x27;N&uacute;&ntilde;ez",
        quote(JOSE),
        quote_plus(JOSE),
        html.escape(quote(JOSE)),
        "Jos\u00ad\u00e9 O\u2019N\u00fa\u00f1ez",
        "<b>José</b>\n<i>O'Núñez</i>",
        "<td>José</td><td>O'Núñez</td>",
        "<b>J</b>osé O'Núñez",
        "**José** _O'Núñez_",
        "/data/jose-o'nunez/x",
        "JOSÉ\u00a0O'NÚÑEZ's",
    ],
)
def test_a_name_is_found_however_it_is_written(text):
    people = People([JOSE])
    assert people.named_in(f"of {text}, and")
    assert not people.named_in(people.without_names(f"of {text}, and"))


@pytest.mark.parametrize(
    "text", ["Ada &amp; Example", "Ada, Example", "Ada% Example", "Adan Example", "x\\u0041b Example", "\\ud83d Ada"]
)
def test_what_is_no_name_stays_none(text):
    assert not People([ADA]).named_in(text)
    assert People([ADA]).without_names(text) == text


def test_a_longer_name_is_another_person():
    people = People([ADA, "Ann"]).beside([f"{ADA} Jr", "Ann Lee", BO, ADA.upper()])
    for text in (f"{ADA} Jr is a baker", "ann lee", "Annette", "Joann", "ada example jr", f"Is {ADA}  Jr here?"):
        assert not people.named_in(text), text
        assert people.without_names(text) == text
    for text in (f"{ADA} Jr and {ADA}", "Ann and Ann Lee", ADA):
        assert people.named_in(text), text
    assert people.without_names(f"{ADA} Jr and {ADA}") == f"{ADA} Jr and {PURGED}"
    assert people.is_inside(" ann  LEE")
    assert not people.is_inside(BO)
    assert not people.is_inside(ADA)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("ada-example", True),
        ("forget_Ada_Example.png", True),
        ("portraitAdaExample2.png", True),
        ("ada_example_2.png", True),
        ("ada_example2s.png", False),
        ("portraitAdaExample.png", True),
        ("adaexample.txt", True),
        ("ada%20example.md", True),
        ("Ada.Example", True),
        ("adaexamples.txt", False),
        ("ada", False),
        ("annette-ada.png", False),
    ],
)
def test_names_in_names_of_files(name, named):
    assert People([ADA]).in_file_name(name) is named


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (ADA, "run.dir=outputs/AdaExample"),
        (ADA, "run.dir=outputs/forgetAdaExample2/model"),
        (ADA, "outputs/adaexample"),
        (ADA, "ada.example"),
        (ADA, r"Ada\ Example"),
        (ADA, "<td>ada_example2</td>"),
        ("J. R. Example", "J.R. Example"),
        ("J. R. Example", "outputs/jr_example"),
        ("Ann McDonald", "outputs/forgetAnnMcDonald"),
        ("Søren Ødegård", "outputs/soren_odegard"),
        ("Conan O'Brien", "run.label='Conan O''Brien'"),
        ("Conan O'Brien", shlex.join(["run.label=Conan O'Brien"])),
        (JOSE, quote(JOSE, encoding="latin-1")),
        (JOSE, f"<i>{quote('José', encoding='latin-1')}</i> O'Nunez"),
    ],
)
def test_what_a_report_would_not_show_is_purged(name, text):
    people = People([name])
    assert people.named_in(text)
    cut = people.without_names(f"of {text}, and")
    assert PURGED in cut
    assert not people.named_in(cut)


def test_names_in_settings_are_cut_out_and_the_rest_stays():
    people = People([ADA]).beside([f"{ADA} Jr"])
    text = "run.dir=outputs/AdaExample-3 of AdaExampleJr, ada%20example%20jr and ada%20example"
    assert people.without_names(text) == f"run.dir=outputs/{PURGED}-3 of AdaExampleJr, ada%20example%20jr and {PURGED}"
    assert not people.named_in("AdaExampleJr, ada%20example%20jr, ada.example.jr")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("Søren Ødegård", "soren_odegard.png"),
        ("Conan O'Brien", "conan_obrien2.png"),
        ("José García", "Jos%E9Garc%EDa.png"),
        ("Ann McDonald", "portraitAnnMcDonald.png"),
        ("Jo Li", "joli.png"),
    ],
)
def test_names_of_files_in_other_letters(name, file):
    assert People([name]).in_file_name(file)
    assert not People([name]).in_file_name("x" + file.lower())


@pytest.mark.slow
@pytest.mark.thorough
def test_megabytes_take_seconds_at_most():
    """2 MB of JSON lines with escapes; somebody with a longer name is in some of them."""
    people = People([ADA, "Søren Ødegård", "Conan O'Brien"]).beside([f"{ADA} Jr"])
    line = json.dumps({"id": "table/Cy/image/0", "answer": 'The "picture" of José\nin Łódź, at 50% <b>R&D</b>. ' * 5})
    text = "\n".join([line] * 5000 + [json.dumps({"answer": f"{ADA} Jr"})])
    begun = time.process_time()
    assert not people.named_in(text)
    assert people.named_in(text + "outputs/AdaExample")
    assert time.process_time() - begun < 15


def test_part_of_each():
    record = subjects_record(learned=examples_about(ADA), forgot=examples_about(BO))
    people = People([BO, ADA, "Cy Nobody"])
    assert people.parts(record) == {"ada example": Part.learned, "bo sample": Part.forgot}
    assert people.part(record) is Part.learned


def asked_about(folder, *names):
    """A purge that has been carried out."""
    return purge(PurgeConfig(subjects=list(names), folders=[str(folder)], yes=True))


def in_evaluation(folder, number):
    evaluation(folder, {f"people/forget_15/{number}/image/choice/0": number})


def in_record(folder, number):
    """A training run that knows people by their hashes alone."""
    run = Run(folder)
    write_settings(run)
    write_json(run.subjects, subjects_record(learned=examples_about(number), forgot=()))


@pytest.mark.parametrize("known", [in_evaluation, in_record])
@pytest.mark.parametrize(("asked", "other"), [("43", "043"), ("0006", "006"), ("6", "0006")])
def test_a_number_that_is_written_otherwise_is_not_passed_over(tmp_path, known, asked, other):
    """Else the answer would be that nothing is stored about them; and it is nothing but a question."""
    known(tmp_path / "run", other)
    plan = asked_about(tmp_path, asked)
    assert [rest.why for rest in plan.rest] == [f"somebody here has the number {other}, and nobody has {asked}"]
    assert [rest.path for rest in plan.rest] == [tmp_path / "run"]
    assert plan.steps == []


@pytest.mark.parametrize("known", [in_evaluation, in_record])
def test_a_number_that_somebody_has_is_taken_as_it_is(tmp_path, known):
    known(tmp_path / "own", "6")
    in_evaluation(tmp_path / "other", "006")
    assert not any("has the number" in rest.why for rest in make_plan(scan([str(tmp_path)]), People(["6"])).rest)


def test_such_a_number_stops_no_purge(tmp_path):
    in_evaluation(tmp_path / "own", "6")
    in_evaluation(tmp_path / "other", "006")
    plan = asked_about(tmp_path, "6")
    assert plan.steps, "done, though nobody has the number any more when it looks again"
    assert not Run(tmp_path / "own").scores("forget_text_generation").read_text()
    assert Run(tmp_path / "other").scores("forget_text_generation").read_text()
    again = asked_about(tmp_path, "6")
    assert not again.steps
    assert [rest.path for rest in again.rest] == [tmp_path / "other"]
