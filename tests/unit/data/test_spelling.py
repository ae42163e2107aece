"""Names are found however they are written, and nothing else is."""

import html
import json
import random
import shlex
import time
import unicodedata
from urllib.parse import quote, quote_plus

import pytest
import yaml

from mmunlearn.data import spelling
from mmunlearn.data.spelling import Spellings, fold, folded, joined, unquoted

JOSE = "José García"


def found(name, text):
    return [text[start:end] for start, end in Spellings([name]).places(text)]


@pytest.mark.parametrize(
    "spelled",
    [
        JOSE,
        unicodedata.normalize("NFD", JOSE),
        "Jose Garcia",
        "JOSÉ GARCÍA",
        "jose  \n garcia",
        "jose_garcia",
        "Jose-García",
        "jose.garcia",
        r"Jose\ Garcia",
        "josegarcia",
        "JoseGarcia",
        "joséGarcía",
        unicodedata.normalize("NFD", "JoséGarcía"),
        "Jos\u00ad\u00e9 Garc\u00eda",
        quote(JOSE),
        quote(JOSE).lower(),
        quote(quote(JOSE)),
        quote(unicodedata.normalize("NFD", JOSE)),
        quote_plus(JOSE),
        quote(JOSE, encoding="latin-1"),
        quote(quote(JOSE, encoding="latin-1")).lower(),
        json.dumps(JOSE)[1:-1],
        json.dumps(json.dumps(JOSE))[3:-3],
        ascii(JOSE)[1:-1],
        "Jos&eacute; Garc&iacute;a",
        "Jos&#233;&nbsp;Garc&#xED;a",
        "Jos&amp;eacute; Garc&amp;iacute;a",
        "Jose\\nGarcia",
    ],
)
@pytest.mark.parametrize(
    "around", ["{}", "outputs/forget-{}/model", "who: ['{}', 3]", "%20{}%20", "{}'s", "id={}_q3", "\\n{}\\t", "é {} ß"]
)
def test_every_spelling_is_found_and_cut_out_exactly(spelled, around):
    assert found(JOSE, around.format(spelled)) == [spelled]


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("Søren Ødegård", ["soren_odegard", "SOREN ODEGARD", "SorenOdegard", "s%C3%B8ren-%d8deg%e5rd", "Søren Ødegård"]),
        ("Soren Odegard", ["Søren Ødegård", "SØREN_ØDEGÅRD", json.dumps("Søren Ødegård")[1:-1]]),
        ("Łukasz Nowak", ["lukasz_nowak", "LukaszNowak", "&#321;ukasz Nowak", "łukasznowak"]),
        ("Æsa Þórðardóttir", ["aesa_thordardottir", "Aesa Thordardottir", "ÆsaÞórðardóttir", "æsa-þórðardóttir"]),
        ("Đặng Œuvrard", ["dang_oeuvrard", "DangOeuvrard"]),
        ("Işık Ħaż", ["isik haz", "ISIK_HAZ", "IŞIK ĦAŻ"]),
        ("Conan O'Brien", ["conan_obrien", "conan-o-brien", "ConanOBrien", "conanobrien", "Conan O''Brien", "Conan O’Brien"]),
        ("Conan O'Brien", [shlex.quote("Conan O'Brien")[1:-1], r"Conan O\'Brien", "Conan O&#x27;Brien", "conan.o.brien"]),
        ("Conan O’Brien", ["conan_obrien", "CONAN O'BRIEN", json.dumps(shlex.quote("Conan O'Brien"))[2:-2]]),
        ("'Abd al-Rahman", ["'Abd al-Rahman", "abd_al_rahman", "AbdAlRahman"]),
    ],
)
@pytest.mark.parametrize("around", ["{}", "outputs/forget-{}/model", "who: ['{}', 3]", "{}'s", "é %20{}_q3 &amp;"])
def test_letters_and_apostrophes_that_are_written_otherwise(name, spelled, around):
    for each in spelled:
        assert [text.strip("'") for text in found(name, around.format(each))] == [each.strip("'")]
        assert joined(each) == joined(name)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("Ada Example", "ada_example2, AdaExample2 adaexample21/x", ["ada_example", "AdaExample", "adaexample"]),
        ("Ada Example", "testAdaExample2Model", ["AdaExample"]),
        ("Ada Example", "ada_example2b adaexample2s AdaExamples2 Ada Examples", []),
        ("Person 4", "Person 42, person_4x, Person 4a, person_42", []),
        ("Person 4", "person_4 Person 4, Person 4-2", ["person_4", "Person 4", "Person 4"]),
        ("Conan O'Brien", "Conan Obriens, O'Brien, Conan O, Brien", []),
        ("D'Ann", "dann Dann d'ann D''Ann d-ann", ["d'ann", "D''Ann", "d-ann"]),
    ],
)
def test_numbers_behind_names_and_apostrophes_of_short_ones(name, text, expected):
    assert found(name, text) == expected


def test_bytes_that_are_no_utf_8_are_letters_of_western_europe():
    assert unquoted("Jos%E9%20%C3%A9 100% %zz %") == "José é 100% %zz %"
    assert found("José", "100%Jos%E9, Jos%E9%C3%A9") == ["Jos%E9"]
    assert found("José", "at 50% Jos%25E9") == ["Jos%25E9"]


def test_it_does_not_matter_where_a_long_text_is_cut(monkeypatch):
    dice = random.Random(2)
    parts = [
        "Ann",
        "Lee",
        "AnnLee",
        "ann",
        "lee",
        " ",
        "_",
        ".",
        ",",
        ": ",
        "'",
        "''",
        "\\n",
        "%20",
        "O",
        "Brien",
        "é",
        "&amp;",
        "(",
        "2",
    ]
    for names in (["Ann Lee", "O'Brien", "Lee"], ["Ann (Lee", "Ann, Lee", "Ann Lee é"]):
        for _ in range(100):
            text = "".join(dice.choices(parts, k=60))
            monkeypatch.setattr(spelling, "_BLOCK", 1)
            cut = Spellings(names).places(text)
            monkeypatch.setattr(spelling, "_BLOCK", 10_000)
            assert Spellings(names).places(text) == cut


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Ann Lee", "annleeward"),
        ("Ann Lee", "joannlee and Joann Lee"),
        ("Ann Lee", "ann leeward, Ann Leeds, AnnLeeward, ANNLEEWARD"),
        ("Ann Lee", "Ann. Lee, Ann, Lee; Ann (Lee); Ann's Lee"),
        ("Ann Lee", "%41nn%20Leeward Ann%C3%A9Lee"),
        ("Ann Lee", "Ann"),
        ("Jo Li", "joli JOLI Jo"),
        ("José", "Joseph Josefine"),
        ("Ann", "AnnLee annual TrainingAnn Planned"),
        ("retain-12", "retain12 retain-123 retain-1"),
        ("...", "... . "),
        ("", "anything at all"),
    ],
)
def test_nothing_is_found_in_other_words(name, text):
    assert found(name, text) == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("Jo Li", "JoLi jo_li JoLiModel", ["JoLi", "jo_li", "JoLi"]),
        ("Ann Lee", "see AnnLeeModel3, testAnnLee", ["AnnLee", "AnnLee"]),
        ("Ann McDonald", "AnnMcDonald, annmcdonald, Ann Mcdonald", ["AnnMcDonald", "annmcdonald", "Ann Mcdonald"]),
        ("J. R. Smith", "J. R. Smith, J R Smith, J.R. Smith, JRSmith", ["J. R. Smith", "J R Smith", "J.R. Smith", "JRSmith"]),
        ("O'Brien Jr.", "O’Brien Jr., o%27brien%20jr", ["O’Brien Jr.", "o%27brien%20jr"]),
        ("retain-12", "retain-12 retain_12 RETAIN 12", ["retain-12", "retain_12", "RETAIN 12"]),
        ("Strauß Łukasz", "STRAUSS Łukasz", ["STRAUSS Łukasz"]),
        ("Nina Lee", r"outputs\nina_lee", ["nina_lee"]),
        ("Ann", "Ann, ann%20", ["Ann", "ann"]),
        ("Ann Zoé", "Ann Zoe\u0301, Zoe\u0301\u0301", ["Ann Zoe\u0301"]),
    ],
)
def test_what_is_found_is_the_name_alone(name, text, expected):
    assert found(name, text) == expected


def test_the_longest_of_names_that_begin_together_is_taken():
    text = "Ann Lee Ward, AnnLeeWard and Ann Lee"
    places = Spellings(["Ann", "Ann Lee", "Ann Lee Ward"]).places(text)
    assert [text[start:end] for start, end in places] == ["Ann Lee Ward", "AnnLeeWard", "Ann Lee"]
    text = "Ann Lee Zo%C3%A9"  # read as it stands it has the shorter name
    assert Spellings(["Ann Lee", "Ann Lee Zoé"]).places(text) == [(0, len(text))]


def test_folding_keeps_the_places_of_all_characters():
    """Whatever the text: folded piece by piece it is what it is folded whole, and the places lie in order inside it."""
    dice = random.Random(0)
    alphabet = "aZé\u0301ßİŁØæÞı´…①ﬁ\u00ad 9_%20\\u00e9&amp;"
    for _ in range(200):
        text = "".join(dice.choices(alphabet, k=30))
        for humps in (False, True):
            one = fold(text, humps=humps)
            assert one.text.replace("\x1f", "") == folded(text)
            assert len(one.text) == len(one.starts) == len(one.ends)
            assert all(0 <= start <= end <= len(text) for start, end in zip(one.starts, one.ends, strict=True))
            assert list(one.starts) == sorted(one.starts)
            assert list(one.ends) == sorted(one.ends)


def test_all_spellings_have_one_joined_form():
    forms = [
        JOSE,
        unicodedata.normalize("NFD", JOSE),
        "jose_garcia",
        "JoseGarcia",
        quote(JOSE),
        html.escape(JOSE),
        "Jose.Garcia",
    ]
    assert {joined(form) for form in forms} == {"josegarcia"}
    assert joined("Josef Garcia") != "josegarcia"


def test_a_long_text_takes_seconds_at_most():
    """500 people and 200 kB, more than a report's configurations have."""
    dice = random.Random(1)
    names = [
        "".join(dice.choices("abcdefghij", k=6)).title() + " " + "".join(dice.choices("klmno", k=7)).title() for _ in range(500)
    ]
    text = yaml.safe_dump({"lines": [f"{dice.choice(names[:1])} é%20 {number}" for number in range(8000)]}, allow_unicode=True)
    begun = time.process_time()
    assert len(Spellings(names).places(text)) == 8000
    assert time.process_time() - begun < 10
